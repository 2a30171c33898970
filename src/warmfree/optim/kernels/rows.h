// What the kernels share: torch's own threads, and Adam's and Lion's arithmetic on runs of float32.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace warmfree {

using Tensors = std::vector<at::Tensor>;
using Numbers = std::vector<double>;

// Runs f(0) .. f(parts - 1), each on a thread of torch's pool. at::parallel_for would be compiled here, with this
// compiler's OpenMP, which need not be torch's; a TensorIterator runs its loop inside torch's library.
class Pool {
 public:
  Pool() : parts_(at::in_parallel_region() ? 1 : at::get_num_threads()) {
    if (parts_ > 1) {
      items_ = at::empty({parts_}, at::kByte);
      iterator_ = at::TensorIteratorConfig()
                      .check_all_same_dtype(false)
                      .resize_outputs(false)
                      .declare_static_shape({parts_})
                      .add_output(items_)
                      .build();
    }
  }

  int64_t parts() const { return parts_; }

  template <class F>
  void run(const F& f) {
    if (parts_ == 1) {
      f(int64_t{0});
      return;
    }
    const char* first = static_cast<const char*>(items_.data_ptr());
    iterator_.for_each(
        [&](char** data, const int64_t*, int64_t count) {
          for (int64_t i = 0; i < count; ++i) f(data[0] - first + i);
        },
        /*grain_size=*/1);
  }

 private:
  int64_t parts_;
  at::Tensor items_;
  at::TensorIterator iterator_;
};

// Scratch that a calling thread keeps between steps, so that a step allocates nothing.
inline float* scratch(int64_t count) {
  static thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < count + 16) kept.resize(count + 16);
  auto address = reinterpret_cast<std::uintptr_t>(kept.data());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

inline int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

// x + rate * (y - x) as torch's lerp computes it: from the end that is nearer.
struct Lerp {
  explicit Lerp(double amount)
      : from_start(amount < 0.5),
        rate(static_cast<float>(from_start ? amount : 1.0 - amount)) {}

  float operator()(float x, float y) const { return from_start ? x + rate * (y - x) : y - rate * (y - x); }

  bool from_start;
  float rate;
};

struct AdamScalars {
  AdamScalars(double beta1, double beta2, double eps_, double root, bool maximize)
      : lerp(1.0 - beta1),
        keep(static_cast<float>(beta2)),
        add(static_cast<float>(1.0 - beta2)),
        inverse_root(static_cast<float>(1.0 / root)),
        eps(static_cast<float>(eps_)),
        sign(maximize ? -1.0f : 1.0f) {}

  // sqrt(v)/root + eps; where that is 0 (no gradient has come) infinity, so that there is no update.
  float denominator(float v) const {
    const float d = std::sqrt(v) * inverse_root + eps;
    return d == 0.0f ? std::numeric_limits<float>::infinity() : d;
  }

  Lerp lerp;
  float keep, add, inverse_root, eps, sign;
};

struct Span {
  int64_t tensor, begin, end;
};

// Cuts the tensors, laid end to end, into as many runs of about equal length as there are parts. A run ends where a
// unit (a row; 16 numbers of a tensor without rows) ends.
inline std::vector<std::vector<Span>> cut(const Tensors& tensors, const std::vector<int64_t>& units, int64_t parts) {
  int64_t total = 0;
  for (const auto& tensor : tensors) total += tensor.numel();
  std::vector<std::vector<Span>> runs(parts);
  int64_t before = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t count = tensors[i].numel(), unit = units[i];
    int64_t begin = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t target = (part + 1) * total / parts - before;
      int64_t end = part + 1 == parts ? count : std::min(count, std::max<int64_t>(0, target) / unit * unit);
      if (end > begin) runs[part].push_back({static_cast<int64_t>(i), begin, end});
      begin = std::max(begin, end);
    }
    before += count;
  }
  return runs;
}

inline float* floats(const at::Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

}  // namespace warmfree
