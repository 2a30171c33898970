// Steps of Adam and Lion on float32 on the CPU, each in as few passes over memory as it can be made in.
#include <torch/csrc/utils/pybind.h>

#include "angular.h"
#include "rows.h"
#include "spectral.h"

namespace warmfree {

struct LionScalars {
  LionScalars(double momentum, bool nesterov_, bool maximize)
      : lerp(1.0 - momentum), nesterov(nesterov_), sign(maximize ? -1.0f : 1.0f) {}

  // sign(c), after the momentum has taken in the gradient.
  template <class Count>
  WARMFREE_INLINE Lanes update(float* m, const float* g, Count count) const {
    const Lanes gj = sign * load(g, count), mj = lerp(load(m, count), gj);
    store(m, mj, count);
    const Lanes c = nesterov ? lerp(mj, gj) : mj, one = Lanes{} + 1.0f;
    return choose(c > 0.0f, one, choose(c < 0.0f, -one, Lanes{}));
  }

  Lerp lerp;
  bool nesterov;
  float sign;
};

// Size of Lion's update, see directions.py: sqrt((1 - b)/(1 + b)).
double equilibrium_rms(double momentum) { return std::sqrt((1.0 - momentum) / (1.0 + momentum)); }

void adam(const Tensors& params, const Tensors& grads, const Tensors& averages, const Tensors& squares, double lr,
          double weight_decay, double beta1, double beta2, double eps, const Numbers& corrections,
          const Numbers& roots, bool maximize) {
  expect_alike(params, {&grads, &averages, &squares});
  Pool pool;
  const auto runs = cut(params, std::vector<int64_t>(params.size(), kLanes), pool.parts());
  const float decay = static_cast<float>(1.0 - lr * weight_decay);
  pool.run([&](int64_t part) {
    for (const Span& span : runs[part]) {
      const int64_t i = span.tensor;
      const AdamScalars s(beta1, beta2, eps, roots[i], maximize);
      const float amount = static_cast<float>(-(lr / corrections[i]));
      float *w = floats(params[i]), *m = floats(averages[i]), *v = floats(squares[i]);
      const float* g = floats(grads[i]);
      each(span.begin, span.end, [&](int64_t j, auto count) {
        const Lanes u = s.update(m + j, v + j, g + j, count);
        store(w + j, load(w + j, count) * decay + amount * u, count);
      });
    }
  });
}

void lion(const Tensors& params, const Tensors& grads, const Tensors& averages, double lr, double weight_decay,
          double momentum, bool nesterov, bool maximize) {
  expect_alike(params, {&grads, &averages});
  Pool pool;
  const auto runs = cut(params, std::vector<int64_t>(params.size(), kLanes), pool.parts());
  const float decay = static_cast<float>(1.0 - lr * weight_decay);
  const float amount = static_cast<float>(-lr * equilibrium_rms(momentum));
  const LionScalars s(momentum, nesterov, maximize);
  pool.run([&](int64_t part) {
    for (const Span& span : runs[part]) {
      float *w = floats(params[span.tensor]), *m = floats(averages[span.tensor]);
      const float* g = floats(grads[span.tensor]);
      each(span.begin, span.end, [&](int64_t j, auto count) {
        const Lanes u = s.update(m + j, g + j, count);
        store(w + j, load(w + j, count) * decay + amount * u, count);
      });
    }
  });
}

void expect_per_row(const Tensors& params, const Tensors& kept_norms, const Tensors& update_norm_sqs) {
  for (size_t i = 0; i < params.size(); ++i) {
    expect(kept_norms[i], params[i].size(0), "kept_norms");
    expect(update_norm_sqs[i], params[i].size(0), "update_norm_sqs");
  }
}

at::Tensor adam_angular(const Tensors& params, const Tensors& grads, const Tensors& averages, const Tensors& squares,
                        const Tensors& kept_norms, const Tensors& update_norm_sqs, double lr, const Numbers& angles,
                        double beta1, double beta2, double eps, const Numbers& corrections, const Numbers& roots,
                        double update_norm_decay, const Numbers& average_corrections, double rotational_eps,
                        bool maximize) {
  const Turning options{lr, update_norm_decay, rotational_eps};
  expect_alike(params, {&grads, &averages, &squares});
  expect_per_row(params, kept_norms, update_norm_sqs);
  return turn(params, [&](int64_t i, int64_t at, int64_t cols, float* room) {
    const AdamScalars s(beta1, beta2, eps, roots[i], maximize);
    const float scale = static_cast<float>(1.0 / corrections[i]);
    float *m = floats(averages[i]) + at, *v = floats(squares[i]) + at;
    const float* g = floats(grads[i]) + at;
    return turn_row(floats(params[i]) + at, room, cols, floats(kept_norms[i]) + at / cols,
                    floats(update_norm_sqs[i]) + at / cols, options, angles[i], average_corrections[i],
                    [&](int64_t j, auto count) {
                      fetch_to_write(m + j);
                      fetch_to_write(v + j);
                      fetch(g + j);
                      return scale * s.update(m + j, v + j, g + j, count);
                    });
  });
}

at::Tensor lion_angular(const Tensors& params, const Tensors& grads, const Tensors& averages,
                        const Tensors& kept_norms, const Tensors& update_norm_sqs, double lr, const Numbers& angles,
                        double momentum, bool nesterov, double update_norm_decay, const Numbers& average_corrections,
                        double rotational_eps, bool maximize) {
  const Turning options{lr, update_norm_decay, rotational_eps};
  expect_alike(params, {&grads, &averages});
  expect_per_row(params, kept_norms, update_norm_sqs);
  const LionScalars s(momentum, nesterov, maximize);
  const float scale = static_cast<float>(equilibrium_rms(momentum));
  return turn(params, [&](int64_t i, int64_t at, int64_t cols, float* room) {
    float* m = floats(averages[i]) + at;
    const float* g = floats(grads[i]) + at;
    return turn_row(floats(params[i]) + at, room, cols, floats(kept_norms[i]) + at / cols,
                    floats(update_norm_sqs[i]) + at / cols, options, angles[i], average_corrections[i],
                    [&](int64_t j, auto count) {
                      fetch_to_write(m + j);
                      fetch(g + j);
                      return scale * s.update(m + j, g + j, count);
                    });
  });
}

// Whether the kernels can step tensors together: parameter, gradient, moments.
bool takes(const Tensors& tensors) {
  return tensors[0].numel() > 0 && std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided &&
           tensor.sizes() == tensors[0].sizes() && tensor.is_contiguous();
  });
}

// Sums of squares, in blocks whose float32 sums go into a double. A span is read at eight places at once: one stream
// keeps too few cache lines on their way to use the memory's bandwidth.
at::Tensor square_sums(const Tensors& tensors) {
  constexpr int64_t kStreams = 8, kBlock = 64 * kLanes;
  for (const auto& tensor : tensors) expect(tensor, tensor.numel(), "a tensor");
  Pool pool;
  const int64_t count = static_cast<int64_t>(tensors.size());
  const auto runs = cut(tensors, std::vector<int64_t>(tensors.size(), kLanes), pool.parts());
  at::Tensor partial = at::zeros({pool.parts(), count}, at::kDouble);
  double* sums = partial.data_ptr<double>();
  pool.run([&](int64_t part) {
    for (const Span& span : runs[part]) {
      const float* x = floats(tensors[span.tensor]);
      const int64_t length = (span.end - span.begin) / kStreams / kLanes * kLanes;
      double total = 0.0;
      for (int64_t at = 0; at < length; at += kBlock) {
        Lanes squares[kStreams] = {};
        const int64_t stop = std::min(at + kBlock, length);
        for (int64_t j = span.begin + at; j < span.begin + stop; j += kLanes) {
          for (int64_t k = 0; k < kStreams; ++k) {
            const float* from = x + j + k * length;
            fetch(from);
            const Lanes value = load(from, Full{});
            squares[k] += value * value;
          }
        }
        for (int64_t k = 0; k < kStreams; ++k)
          for (int64_t lane = 0; lane < kLanes; ++lane) total += squares[k][lane];
      }
      for (int64_t j = span.begin + kStreams * length; j < span.end; ++j) total += double(x[j]) * x[j];
      sums[part * count + span.tensor] += total;
    }
  });
  return partial.sum(0);
}

}  // namespace warmfree

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using release = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("adam", &warmfree::adam, release());
  module.def("lion", &warmfree::lion, release());
  module.def("takes", &warmfree::takes);
  module.def("square_sums", &warmfree::square_sums, release());
  module.def("adam_spectral", &warmfree::adam_spectral, release());
  module.def("adam_angular", &warmfree::adam_angular, release());
  module.def("lion_angular", &warmfree::lion_angular, release());
}
