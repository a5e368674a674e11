#include "python/src/bind.h"

NB_MODULE(_core, m) {
  nanobind::exception<ei::Error>(m, "Error", PyExc_ValueError);
  ei::python::bind_policy(m);
  ei::python::bind_engine(m);
  ei::python::bind_profile(m);
  ei::python::bind_ops(m);
}
