// The emulator as a Python module. To import it also registers the emulated kernels with torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>
#include <string>

namespace emulator {
const std::set<std::string>& launched_kernels();
}

PYBIND11_MODULE(cls2det_emulated, m) {
  m.def("launched_kernels", &emulator::launched_kernels, "The names of all kernels that this process has launched.");
}
