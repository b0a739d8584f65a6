#include <nanobind/nanobind.h>
NB_MODULE(_decoder, m) { m.doc() = "native decoder"; }
