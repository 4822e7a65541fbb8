"""What a loader's worker of test_annotation_cache.py reads: in a module of its own, which the process can import."""

from torch.utils.data import Dataset


class MappedItems(Dataset):
    """The boxes of item 0, whether the data's arrays are the mapped file, and whether the process has copied them."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 1

    def __getitem__(self, index):
        with open("/proc/self/maps", encoding="utf-8") as maps:
            is_mapped = str(self.data.columns.file) in maps.read()
        return self.data[index][1]["boxes"].tolist(), is_mapped, self.data.columns.boxes.flags.owndata
