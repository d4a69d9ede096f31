#include "torch/weight_lifetime.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

namespace memmod::cpu {

namespace py = pybind11;

bool call_when_freed(const at::Tensor& weight, std::function<void()> freed) {
  if (!Py_IsInitialized()) {
    return false;
  }
  const py::gil_scoped_acquire gil;
  const py::object object = py::reinterpret_steal<py::object>(THPVariable_Wrap(weight));
  if (!object) {
    PyErr_Clear();
    return false;
  }
  // An object that nothing else holds was made just now, and its end would say nothing about the tensor.
  if (object.ref_count() == 1) {
    return false;
  }
  const auto callback = py::cpp_function([freed = std::move(freed)](py::handle reference) {
    freed();
    reference.dec_ref();
  });
  py::weakref(object, callback).release();
  return true;
}

}  // namespace memmod::cpu
