// One step of Adam or Lion in one pass over memory: plain, rotating every row, or under a spectral bound.
#include <torch/csrc/utils/pybind.h>

#include "rows.h"
#include "spectral.h"

namespace warmfree {

void adam(const Tensors& params, const Tensors& grads, const Tensors& averages, const Tensors& squares, double lr,
          double weight_decay, double beta1, double beta2, double eps, const Numbers& corrections,
          const Numbers& roots, bool maximize) {
  Pool pool;
  const auto runs = cut(params, std::vector<int64_t>(params.size(), 16), pool.parts());
  const float decay = static_cast<float>(1.0 - lr * weight_decay);
  pool.run([&](int64_t part) {
    for (const Span& span : runs[part]) {
      const int64_t i = span.tensor;
      const AdamScalars s(beta1, beta2, eps, roots[i], maximize);
      const float amount = static_cast<float>(-(lr / corrections[i]));
      float* __restrict w = floats(params[i]);
      const float* __restrict g = floats(grads[i]);
      float* __restrict m = floats(averages[i]);
      float* __restrict v = floats(squares[i]);
#pragma omp simd
      for (int64_t j = span.begin; j < span.end; ++j) {
        const float gj = s.sign * g[j];
        const float mj = s.lerp(m[j], gj);
        const float vj = s.keep * v[j] + s.add * (gj * gj);
        m[j] = mj;
        v[j] = vj;
        w[j] = w[j] * decay + amount * mj / s.denominator(vj);
      }
    }
  });
}

}  // namespace warmfree

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("adam", &warmfree::adam, release());
  module.def("adam_spectral", &warmfree::adam_spectral, release());
}
