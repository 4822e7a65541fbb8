// The CPU operators without torch, for a processor that this machine can only emulate: the part of torch's stable C interface
// that csrc/cpu asks for, on plain memory and one thread, and a main() that repeats recorded calls. See replay.py.
//
// Reads calls from standard input, writes their results to standard output; the layout of both stands in replay.py.
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
using Sizes = std::vector<int64_t>;

namespace {

struct Array {  // what an AtenTensorHandle points to
  std::shared_ptr<std::vector<char>> memory;
  int64_t offset = 0;  // bytes
  int32_t dtype;
  Sizes sizes, strides;

  char* at(const Sizes& index) const {
    int64_t element = 0;
    for (size_t d = 0; d < sizes.size(); ++d) element += index[d] * strides[d];
    return memory->data() + offset + element * int64_t(aoti_torch_dtype_element_size(dtype));
  }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : sizes) count *= size;
    return count;
  }
  template <typename Visit>
  void each_index(const Visit& visit) const {
    Sizes index(sizes.size(), 0);
    for (int64_t left = numel(); left > 0; --left) {
      visit(index);
      for (size_t d = sizes.size(); d-- > 0 && ++index[d] == sizes[d];) index[d] = 0;
    }
  }
};

std::map<std::string, Boxed>& kernels() {
  static std::map<std::string, Boxed> all;
  return all;
}

Array& array(AtenTensorHandle handle) { return *reinterpret_cast<Array*>(handle); }
AtenTensorHandle handle(Array value) { return reinterpret_cast<AtenTensorHandle>(new Array(std::move(value))); }

Sizes dense_strides(const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  return strides;
}

Array make(int32_t dtype, const Sizes& sizes, const Sizes& strides) {
  int64_t last = 0, count = 1;
  for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d], count *= sizes[d];
  const size_t bytes = count ? (last + 1) * aoti_torch_dtype_element_size(dtype) : 0;
  auto memory = std::make_shared<std::vector<char>>(bytes, char(0xA5));  // what nobody writes shows
  return {memory, 0, dtype, sizes, strides};
}

double read(const char* p, int32_t dtype);
void write(char* p, int32_t dtype, double value);

void copy(const Array& to, const Array& from) {
  to.each_index([&](const Sizes& index) {
    if (to.dtype == from.dtype) {
      std::memcpy(to.at(index), from.at(index), aoti_torch_dtype_element_size(to.dtype));
    } else {
      write(to.at(index), to.dtype, read(from.at(index), from.dtype));
    }
  });
}

[[noreturn]] void stop(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(3);
}

// The convolution of frozen_stem, channels-last like its inputs: no dilation, no groups.
template <typename T>
Array convolve(const Array& images, const Array& weight, const Array& bias, int64_t stride, int64_t padding) {
  const int64_t inputs = images.sizes[1], channels = weight.sizes[0];
  const Sizes kernel{weight.sizes[2], weight.sizes[3]}, from{images.sizes[2], images.sizes[3]};
  const int64_t height = (from[0] + 2 * padding - kernel[0]) / stride + 1,
                width = (from[1] + 2 * padding - kernel[1]) / stride + 1;
  const Sizes sizes{images.sizes[0], channels, height, width};
  Array out = make(images.dtype, sizes, {channels * height * width, 1, width * channels, channels});
  const auto value = [](const Array& a, const Sizes& index) { return *reinterpret_cast<const T*>(a.at(index)); };
  std::vector<T> weights(kernel[0] * kernel[1] * inputs * channels);  // (ky, kx, input, channel)
  T* next = weights.data();
  for (int64_t ky = 0; ky < kernel[0]; ++ky) {
    for (int64_t kx = 0; kx < kernel[1]; ++kx) {
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t c = 0; c < channels; ++c) *next++ = value(weight, {c, i, ky, kx});
      }
    }
  }
  T* place = reinterpret_cast<T*>(out.memory->data());
  for (int64_t n = 0; n < sizes[0]; ++n) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x, place += channels) {
        for (int64_t c = 0; c < channels; ++c) place[c] = value(bias, {c});
        for (int64_t k = 0; k < kernel[0] * kernel[1]; ++k) {
          const int64_t row = y * stride - padding + k / kernel[1], column = x * stride - padding + k % kernel[1];
          if (row < 0 || row >= from[0] || column < 0 || column >= from[1]) continue;
          for (int64_t i = 0; i < inputs; ++i) {
            const T pixel = value(images, {n, i, row, column});
            const T* w = weights.data() + (k * inputs + i) * channels;
            for (int64_t c = 0; c < channels; ++c) place[c] += pixel * w[c];
          }
        }
      }
    }
  }
  return out;
}

}  // namespace

// Numbers of types and layouts: those of c10, though any that differ would do.
#define NUMBER(name, value) \
  int32_t name() { return value; }
extern "C" {
NUMBER(aoti_torch_dtype_uint8, 0)
NUMBER(aoti_torch_dtype_int8, 1)
NUMBER(aoti_torch_dtype_int16, 2)
NUMBER(aoti_torch_dtype_int32, 3)
NUMBER(aoti_torch_dtype_int64, 4)
NUMBER(aoti_torch_dtype_float16, 5)
NUMBER(aoti_torch_dtype_float32, 6)
NUMBER(aoti_torch_dtype_float64, 7)
NUMBER(aoti_torch_dtype_complex32, 8)
NUMBER(aoti_torch_dtype_complex64, 9)
NUMBER(aoti_torch_dtype_complex128, 10)
NUMBER(aoti_torch_dtype_bool, 11)
NUMBER(aoti_torch_dtype_bfloat16, 15)
NUMBER(aoti_torch_dtype_float8_e5m2, 23)
NUMBER(aoti_torch_dtype_float8_e4m3fn, 24)
NUMBER(aoti_torch_dtype_float8_e5m2fnuz, 25)
NUMBER(aoti_torch_dtype_float8_e4m3fnuz, 26)
NUMBER(aoti_torch_dtype_uint16, 27)
NUMBER(aoti_torch_dtype_uint32, 28)
NUMBER(aoti_torch_dtype_uint64, 29)
NUMBER(torch_dtype_float8_e8m0fnu, 44)
NUMBER(torch_dtype_float4_e2m1fn_x2, 45)
NUMBER(aoti_torch_device_type_cpu, 0)
NUMBER(aoti_torch_device_type_cuda, 1)
NUMBER(aoti_torch_device_type_xpu, 12)
NUMBER(aoti_torch_device_type_mps, 13)
NUMBER(aoti_torch_device_type_meta, 14)
NUMBER(aoti_torch_device_type_privateuse1, 20)
NUMBER(aoti_torch_layout_strided, 0)
NUMBER(aoti_torch_layout_sparse_coo, 1)
NUMBER(aoti_torch_layout_sparse_csr, 2)
NUMBER(aoti_torch_layout__mkldnn, 3)
NUMBER(aoti_torch_layout_sparse_csc, 4)
NUMBER(aoti_torch_layout_sparse_bsr, 5)
NUMBER(aoti_torch_layout_sparse_bsc, 6)
NUMBER(aoti_torch_layout_jagged, 7)
NUMBER(aoti_torch_memory_format_contiguous_format, 0)
NUMBER(aoti_torch_memory_format_preserve_format, 1)
NUMBER(aoti_torch_memory_format_channels_last, 2)
NUMBER(aoti_torch_memory_format_channels_last_3d, 3)

uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }

size_t aoti_torch_dtype_element_size(int32_t dtype) {
  switch (dtype) {
    case 0:
    case 1:
    case 11: return 1;
    case 2: return 2;
    case 3:
    case 6: return 4;
    case 4:
    case 7: return 8;
  }
  stop("16-bit floats and complex numbers are not known here, found type " + std::to_string(dtype));
}

AOTITorchError aoti_torch_empty_strided(
    int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t, int32_t, AtenTensorHandle* made) {
  *made = handle(make(dtype, Sizes(sizes, sizes + dims), Sizes(strides, strides + dims)));
  return 0;
}
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* made) {
  *made = handle(array(from));
  return 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete &array(tensor);
  return 0;
}
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** data) {
  *data = array(tensor).memory->data() + array(tensor).offset;
  return 0;
}
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dims) {
  *dims = int64_t(array(tensor).sizes.size());
  return 0;
}
AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t d, int64_t* size) {
  *size = array(tensor).sizes.at(d);
  return 0;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t d, int64_t* stride) {
  *stride = array(tensor).strides.at(d);
  return 0;
}
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* count) {
  *count = array(tensor).numel();
  return 0;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype) {
  *dtype = array(tensor).dtype;
  return 0;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = 0;
  return 0;
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = -1;
  return 0;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* is) {
  const Array& a = array(tensor);
  const Sizes dense = dense_strides(a.sizes);
  *is = true;
  for (size_t d = 0; d < dense.size() && a.numel(); ++d) *is = *is && (a.sizes[d] == 1 || a.strides[d] == dense[d]);
  return 0;
}
AOTITorchError aoti_torch_aten_narrow(
    AtenTensorHandle tensor, int64_t dim, int64_t start, int64_t length, AtenTensorHandle* made) {
  Array part = array(tensor);
  part.offset += start * part.strides.at(dim) * int64_t(aoti_torch_dtype_element_size(part.dtype));
  part.sizes.at(dim) = length;
  *made = handle(part);
  return 0;
}

AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, uint32_t, TorchLibraryHandle* made) {
  *made = nullptr;
  return 0;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, TorchLibraryHandle* made) {
  *made = nullptr;
  return 0;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char*) { return 0; }
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return 0; }
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, Boxed function, uint64_t) {
  kernels()[name] = function;
  return 0;
}

using List = std::vector<StableIValue>;
AOTITorchError torch_new_list_reserve_size(size_t, StableListHandle* made) {
  *made = reinterpret_cast<StableListHandle>(new List);
  return 0;
}
AOTITorchError torch_list_size(StableListHandle list, size_t* size) {
  *size = reinterpret_cast<List*>(list)->size();
  return 0;
}
AOTITorchError torch_list_get_item(StableListHandle list, size_t index, StableIValue* item) {
  *item = reinterpret_cast<List*>(list)->at(index);
  return 0;
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue item) {
  reinterpret_cast<List*>(list)->push_back(item);
  return 0;
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete reinterpret_cast<List*>(list);
  return 0;
}

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc function, void* context) {
  if (begin < end) function(begin, end, context);
  return 0;
}

// The operators of torch that csrc/cpu calls. Arguments are owned by the one who is called.
AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  const auto tensor = [&](int i) { return reinterpret_cast<AtenTensorHandle>(stack[i]); };
  const auto optional_dtype = [&](int i, int32_t otherwise) {
    auto* value = reinterpret_cast<StableIValue*>(stack[i]);
    const int32_t dtype = value ? int32_t(*value) : otherwise;
    delete value;
    return dtype;
  };
  const std::string operation = name;
  Array self = array(tensor(0)), result;
  if (operation == "aten::copy_") {
    copy(self, array(tensor(1)));
    result = self;
    aoti_torch_delete_tensor_object(tensor(1));
  } else if (operation == "aten::to") {
    result = make(optional_dtype(1, self.dtype), self.sizes, dense_strides(self.sizes));
    copy(result, self);
  } else if (operation == "aten::new_zeros") {
    auto* sizes = reinterpret_cast<List*>(stack[1]);
    const Sizes shape(sizes->begin(), sizes->end());
    delete sizes;
    result = make(optional_dtype(2, self.dtype), shape, dense_strides(shape));
    std::fill(result.memory->begin(), result.memory->end(), char(0));
  } else if (operation == "aten::transpose") {
    result = self;
    std::swap(result.sizes.at(stack[1]), result.sizes.at(stack[2]));
    std::swap(result.strides.at(stack[1]), result.strides.at(stack[2]));
  } else if (operation == "aten::convolution") {
    auto* bias = reinterpret_cast<StableIValue*>(stack[2]);
    const auto first = [&](int i) {
      auto* list = reinterpret_cast<List*>(stack[i]);
      const int64_t value = int64_t(list->at(0));
      delete list;
      return value;
    };
    const int64_t stride = first(3), padding = first(4);
    const auto offset = reinterpret_cast<AtenTensorHandle>(*bias);
    result = (self.dtype == 7 ? convolve<double> : convolve<float>)(self, array(tensor(1)), array(offset), stride, padding);
    for (int i : {5, 7}) delete reinterpret_cast<List*>(stack[i]);
    for (AtenTensorHandle used : {tensor(1), offset}) aoti_torch_delete_tensor_object(used);
    delete bias;
  } else {
    stop(operation + " is not known here");
  }
  aoti_torch_delete_tensor_object(tensor(0));
  stack[0] = reinterpret_cast<StableIValue>(handle(result));
  return 0;
}
}  // extern "C"

namespace {

double read(const char* p, int32_t dtype) {
  const auto as = [&](auto value) {
    std::memcpy(&value, p, sizeof value);
    return double(value);
  };
  return dtype == 4 ? as(int64_t()) : dtype == 6 ? as(float()) : dtype == 7 ? as(double()) : as(bool());
}

void write(char* p, int32_t dtype, double number) {
  const auto as = [&](auto value) { std::memcpy(p, &value, sizeof value); };
  dtype == 4 ? as(int64_t(number)) : dtype == 6 ? as(float(number)) : dtype == 7 ? as(number) : as(number != 0);
}

void get(void* p, size_t bytes) {
  if (bytes && std::fread(p, bytes, 1, stdin) != 1) stop("the recorded calls end too early");
}
template <typename T>
T get() {
  T value;
  get(&value, sizeof value);
  return value;
}

Array get_tensor() {
  const int32_t dtype = int32_t(get<int64_t>());
  Sizes sizes(get<int64_t>()), strides(sizes.size());
  get(sizes.data(), sizes.size() * 8);
  get(strides.data(), strides.size() * 8);
  Array result = make(dtype, sizes, strides);
  get(result.memory->data(), result.memory->size());
  return result;
}

StableIValue get_argument() {
  const char kind = get<char>();
  switch (kind) {
    case 'n': return 0;
    case 't': return reinterpret_cast<StableIValue>(handle(get_tensor()));
    case 'o': return reinterpret_cast<StableIValue>(new StableIValue(reinterpret_cast<StableIValue>(handle(get_tensor()))));
    case 'l': {
      auto* list = new List(get<int64_t>());
      for (StableIValue& item : *list) item = get<uint64_t>();
      return reinterpret_cast<StableIValue>(list);
    }
    case 'v': return get<uint64_t>();  // an int, a bool, or the bits of a double
  }
  stop(std::string("no argument is of kind ") + kind);
}

}  // namespace

int main() {
  for (int64_t left = get<int64_t>(); left > 0; --left) {
    std::string name(get<int64_t>(), ' ');
    get(name.data(), name.size());
    const int64_t arguments = get<int64_t>(), results = get<int64_t>();
    std::vector<StableIValue> stack(std::max(arguments, results));
    for (int64_t i = 0; i < arguments; ++i) stack[i] = get_argument();
    if (!kernels().count(name)) stop("no kernel of " + name);
    kernels()[name](stack.data(), arguments, results);
    for (int64_t i = 0; i < results; ++i) {
      Array& from = array(reinterpret_cast<AtenTensorHandle>(stack[i]));
      const Array dense = make(from.dtype, from.sizes, dense_strides(from.sizes));
      copy(dense, from);
      const int64_t bytes = int64_t(dense.memory->size());
      std::fwrite(&bytes, sizeof bytes, 1, stdout);
      std::fwrite(dense.memory->data(), 1, bytes, stdout);
      delete &from;
    }
  }
}
