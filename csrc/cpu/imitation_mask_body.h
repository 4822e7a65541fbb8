// IoUs of one box with the anchors of a chunk, lanes over anchors.

template <typename T>
CLS2DET_HD Vec<T> iou_of(const ImitationArgs<T>& args, int64_t n, int64_t left, const Corners<Vec<T>>& box) {
  const Corners<Vec<T>> anchors{
      load_up_to(args.anchors.x1 + n, left, T(0)), load_up_to(args.anchors.y1 + n, left, T(0)),
      load_up_to(args.anchors.x2 + n, left, T(0)), load_up_to(args.anchors.y2 + n, left, T(0))};
  return iou(anchors, box);
}

template <typename T>
CLS2DET_HD Corners<Vec<T>> spread(const T* box) {
  return {Vec<T>{} + box[0], Vec<T>{} + box[1], Vec<T>{} + box[2], Vec<T>{} + box[3]};
}

// The largest IoU of every box with the anchors of each of the chunks [begin, end).
template <typename T>
void imitation_maxima(const ImitationArgs<T>& args, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const AnchorChunk& chunk = args.chunks[c];
    for (int64_t g = 0; g < args.boxes_count; ++g) {
      const Corners<Vec<T>> box = spread(args.boxes + g * 4);
      Vec<T> most{};
      for (int64_t n = chunk.begin; n < chunk.end; n += kLanes<T>) {
        const Vec<T> ratio = iou_of(args, n, chunk.end - n, box);
        most = ratio > most ? ratio : most;
      }
      args.largest[c * args.boxes_count + g] = max_lanes<T>(most);
    }
  }
}

// The masks of the chunks [begin, end). A box whose largest IoU in a chunk is too small is not looked at again.
template <typename T>
void imitation_marks(const ImitationArgs<T>& args, int64_t begin, int64_t end) {
  T marked[kChunk];
  for (int64_t c = begin; c < end; ++c) {
    const AnchorChunk& chunk = args.chunks[c];
    for (int64_t image = 0; image < args.images; ++image) {
      std::memset(marked, 0, sizeof marked);
      for (int64_t g = 0; g < args.boxes_count; ++g) {
        const T threshold = args.thresholds[g * args.levels + chunk.level];
        if (args.image_index[g] != image || !(args.largest[c * args.boxes_count + g] > threshold)) continue;
        const Corners<Vec<T>> box = spread(args.boxes + g * 4);
        for (int64_t n = chunk.begin; n < chunk.end; n += kLanes<T>) {
          const int64_t left = chunk.end - n;
          T* at = marked + (n - chunk.begin);
          const Vec<T> before = load_up_to(at, left, T(0));
          store_up_to(at, Vec<T>(iou_of(args, n, left, box) > threshold ? Vec<T>{} + T(1) : before), left);
        }
      }
      bool* mask = args.mask + image * args.anchors_count;
      for (int64_t n = chunk.begin; n < chunk.end; ++n) mask[n] = marked[n - chunk.begin] != T(0);
    }
  }
}
