// The emulator as a Python module. To import it also registers the emulated kernels with torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace emulator {
const std::map<std::string, int>& launched_kernels();
}

PYBIND11_MODULE(cls2det_emulated, m) {
  m.def("launched_kernels", &emulator::launched_kernels, "How often this process has launched each kernel.");
}
