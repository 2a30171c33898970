// What the kernels share: torch's own threads, and Adam's and Lion's arithmetic on runs of float32.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <type_traits>
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

#define WARMFREE_INLINE inline __attribute__((always_inline))

// Sixteen numbers, a vector type of GCC and Clang: one register or several, as the machine has them. Written out since
// loops of this length with sums in them are not vectorized reliably.
typedef float Lanes __attribute__((vector_size(64)));
typedef std::int32_t Mask __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;
using Full = std::integral_constant<int64_t, kLanes>;

WARMFREE_INLINE Lanes load(const float* from, Full) {
  Lanes x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

WARMFREE_INLINE Lanes load(const float* from, int64_t count) {
  Lanes x{};
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}

WARMFREE_INLINE void store(float* to, Lanes x, int64_t count) { std::memcpy(to, &x, count * sizeof(float)); }
WARMFREE_INLINE void store(float* to, Lanes x, Full) { std::memcpy(to, &x, sizeof(x)); }

WARMFREE_INLINE Lanes root(Lanes x) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_sqrt_ps((__m512)x);
#else
  for (int k = 0; k < kLanes; ++k) x[k] = std::sqrt(x[k]);
  return x;
#endif
}

// Asks for what a stream of rows comes to in a while: the hardware does so within a page, and stops at the sums.
constexpr int64_t kAhead = 512;
WARMFREE_INLINE void fetch(const float* from) { __builtin_prefetch(from + kAhead); }
WARMFREE_INLINE void fetch_to_write(const float* from) { __builtin_prefetch(from + kAhead, 1); }

WARMFREE_INLINE Lanes choose(Mask where, Lanes yes, Lanes no) {
  return (Lanes)((where & (Mask)yes) | (~where & (Mask)no));
}

WARMFREE_INLINE float total(Lanes x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) x[k] += x[k + width];
  }
  return x[0];
#endif
}

// f(j, count) for every sixteen numbers from begin to end; the last of them may be fewer, and read as zeros.
template <class F>
WARMFREE_INLINE void each(int64_t begin, int64_t end, F&& f) {
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) f(j, Full{});
  if (j < end) f(j, end - j);
}

// x + rate * (y - x) as torch's lerp computes it: from the end that is nearer.
struct Lerp {
  explicit Lerp(double amount)
      : from_start(amount < 0.5), rate(static_cast<float>(from_start ? amount : 1.0 - amount)) {}

  WARMFREE_INLINE Lanes operator()(Lanes x, Lanes y) const {
    return from_start ? x + rate * (y - x) : y - rate * (y - x);
  }

  bool from_start;
  float rate;
};

struct AdamScalars {
  AdamScalars(double beta1, double beta2, double eps_, double bias_root, bool maximize)
      : lerp(1.0 - beta1),
        keep(static_cast<float>(beta2)),
        add(static_cast<float>(1.0 - beta2)),
        inverse_root(static_cast<float>(1.0 / bias_root)),
        eps(static_cast<float>(eps_)),
        sign(maximize ? -1.0f : 1.0f) {}

  // m/(sqrt(v)/root + eps); 0 where that is a division by 0, since no gradient has come.
  WARMFREE_INLINE Lanes update(Lanes m, Lanes v) const {
    const Lanes d = root(v) * inverse_root + eps;
    return choose(d == 0.0f, Lanes{}, m / d);
  }

  // The same after the moments have taken in the gradient.
  template <class Count>
  WARMFREE_INLINE Lanes update(float* m, float* v, const float* g, Count count) const {
    const Lanes gj = sign * load(g, count);
    const Lanes mj = lerp(load(m, count), gj), vj = keep * load(v, count) + (add * gj) * gj;
    store(m, mj, count);
    store(v, vj, count);
    return update(mj, vj);
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

// What a kernel will read or write must be as long as it thinks: a tensor that is not would cost the process.
inline void expect(const at::Tensor& tensor, int64_t count, const char* what) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), what,
              " must be contiguous float32 on the CPU");
  TORCH_CHECK(tensor.numel() == count, what, " must have ", count, " numbers, has ", tensor.numel());
}

inline void expect_alike(const Tensors& params, std::initializer_list<const Tensors*> others) {
  for (const Tensors* other : others) {
    TORCH_CHECK(other->size() == params.size(), "all lists must have the length of params");
    for (size_t i = 0; i < params.size(); ++i) {
      expect(params[i], params[i].numel(), "a parameter");
      expect((*other)[i], params[i].numel(), "a gradient or moment");
    }
  }
}

inline float* floats(const at::Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

}  // namespace warmfree
