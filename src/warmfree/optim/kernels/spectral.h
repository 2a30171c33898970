// Adam's step under a bound on sigma_1, with the power iterations made while rows pass through the caches.
#pragma once

#include "rows.h"

namespace warmfree {

// Rows taken together, so that a sum over rows is loaded and stored once for all of them.
constexpr int64_t kRows = 4;
// Matrices below this many numbers are stepped one by a thread; larger ones by all threads together.
constexpr int64_t kSmall = 1 << 16;
// After one power iteration the estimate of sigma_1(U) is low by a factor of up to about 3 for a new direction in
// noise at width 768. Where even this many times the estimate is allowed, no better one is needed.
constexpr double kMargin = 8.0;
// A factor that a last iteration would change by less than this stays: no pass over memory to correct it.
constexpr double kAgree = 2e-3;

struct Options {
  double lr, weight_decay, tau, floor_unit;
  int64_t iterations;
};

// One section of a matrix: rows that are bounded on their own.
struct Section {
  float* w;
  const float* g;
  float* m;
  float* v;
  int64_t rows, cols;
  float *weight_vector, *update_vector;
  const float* random;
  AdamScalars adam;
  double correction;
  int64_t owner;
  double sigma_weight = 0, sigma_update = 0, factor = 1;
};

// y += <u, x>
inline float dot(const float* __restrict u, const float* __restrict x, int64_t cols) {
  float y = 0;
#pragma omp simd reduction(+ : y)
  for (int64_t j = 0; j < cols; ++j) y += u[j] * x[j];
  return y;
}

// Moments of a row, its update u, and what W's start x0 and U's starts x1 to x3 are mapped to.
inline void first_row(const AdamScalars a, const float* __restrict w, const float* __restrict g, float* __restrict m,
                      float* __restrict v, float* __restrict u, const float* __restrict x0,
                      const float* __restrict x1, const float* __restrict x2, const float* __restrict x3,
                      int64_t cols, float* const* y) {
  float y0 = 0, y1 = 0, y2 = 0, y3 = 0;
#pragma omp simd reduction(+ : y0, y1, y2, y3)
  for (int64_t j = 0; j < cols; ++j) {
    const float gj = a.sign * g[j];
    const float mj = a.lerp(m[j], gj);
    const float vj = a.keep * v[j] + a.add * (gj * gj);
    m[j] = mj;
    v[j] = vj;
    const float uj = mj / a.denominator(vj);
    u[j] = uj;
    y0 += w[j] * x0[j];
    y1 += uj * x1[j];
    y2 += uj * x2[j];
    y3 += uj * x3[j];
  }
  *y[0] = y0;
  *y[1] = y1;
  *y[2] = y2;
  *y[3] = y3;
}

// The same for a row whose moments are made, W's start x0, and U's starts x1 and x2.
inline void later_row(const AdamScalars a, const float* __restrict w, const float* __restrict m,
                      const float* __restrict v, float* __restrict u, const float* __restrict x0,
                      const float* __restrict x1, const float* __restrict x2, int64_t cols, float* const* y) {
  float y0 = 0, y1 = 0, y2 = 0;
#pragma omp simd reduction(+ : y0, y1, y2)
  for (int64_t j = 0; j < cols; ++j) {
    const float uj = m[j] / a.denominator(v[j]);
    u[j] = uj;
    y0 += w[j] * x0[j];
    y1 += uj * x1[j];
    y2 += uj * x2[j];
  }
  *y[0] = y0;
  *y[1] = y1;
  *y[2] = y2;
}

inline void write_row(const AdamScalars a, float* __restrict w, const float* __restrict m, const float* __restrict v,
                      float decay, float amount, int64_t cols) {
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) w[j] = w[j] * decay + amount * m[j] / a.denominator(v[j]);
}

inline void subtract_row(float* __restrict w, const float* __restrict u, float decay, float amount, int64_t cols) {
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) w[j] = w[j] * decay + amount * u[j];
}

// z += sum over rows of y_r u_r
inline void add_rows(float* __restrict z, const float* y, const float* __restrict u, int64_t stride, int64_t count,
                     int64_t cols) {
  if (count == kRows) {
    const float y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
    const float *__restrict u0 = u, *__restrict u1 = u + stride, *__restrict u2 = u1 + stride,
                            *__restrict u3 = u2 + stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) z[j] += (y0 * u0[j] + y1 * u1[j]) + (y2 * u2[j] + y3 * u3[j]);
    return;
  }
  for (int64_t r = 0; r < count; ++r) {
    const float yr = y[r];
    const float* __restrict ur = u + r * stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) z[j] += yr * ur[j];
  }
}

inline double norm(const float* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += static_cast<double>(x[j]) * x[j];
  return std::sqrt(sum);
}

inline bool usable(double sigma) { return sigma > 0 && std::isfinite(sigma); }

// Sums over rows of y_r a_r and of y_r^2 for one start x, in every part.
struct Sums {
  float* z;
  double squares;
};

// Power iterations of one section's weight and update, and the step.
class Bounded {
 public:
  Bounded(Section& section, const Options& options, int64_t parts, float* space)
      : s_(section), o_(options), parts_(parts), pad_(padded(section.cols)), space_(space) {}

  // Floats of scratch that a section of so many columns needs.
  static int64_t need(int64_t cols, int64_t parts) {
    return padded(cols) * (kStarts + parts * (kStarts + kRows));
  }

  template <class Run>
  void step(const Run& run) {
    begin();
    run([&](int64_t part) { first(part); });
    finish(kStarts);
    const double unit = o_.floor_unit * (std::sqrt(double(s_.rows)) + std::sqrt(double(s_.cols)));
    int64_t made = 1;
    const auto near = [&] { return o_.lr * s_.sigma_update * kMargin > o_.tau * std::max(s_.sigma_weight, unit); };
    const auto factor = [&] {
      const double allowed = o_.tau * std::max(s_.sigma_weight, unit), wanted = o_.lr * s_.sigma_update;
      return wanted > allowed ? allowed / wanted : 1.0;
    };
    bool iterate = made < o_.iterations && near();
    // What is written with a factor that turns out wrong is corrected from the written weights, which needs a step
    // that is small against them.
    const bool reversible = o_.tau <= 1.0 && o_.lr * o_.weight_decay < 0.5;
    for (; iterate && made < o_.iterations - (reversible ? 1 : 0); ++made) {
      run([&](int64_t part) { later<true, false>(part, 1.0); });
      finish(3);
    }
    s_.factor = factor();
    if (!iterate || !reversible) {
      run([&](int64_t part) { later<false, true>(part, s_.factor); });
    } else {
      run([&](int64_t part) { later<true, true>(part, s_.factor); });
      const double old = s_.factor;
      finish(3);
      const double better = factor();
      if (std::abs(better - old) > kAgree * better) {
        run([&](int64_t part) { correct(part, old, better); });
        s_.factor = better;
      }
    }
    end();
  }

 private:
  static constexpr int64_t kStarts = 4;

  float* start(int64_t k) { return space_ + k * pad_; }
  float* sum(int64_t part, int64_t k) { return space_ + (kStarts + part * (kStarts + kRows) + k) * pad_; }
  float* rows(int64_t part) { return sum(part, kStarts); }

  // Starts of the first iteration: W's last vector, moved a little lest it see nothing; for U its own last vector,
  // a random one and W's top direction, whose image is what makes sigma_1(W) grow.
  void begin() {
    for (int64_t j = 0; j < s_.cols; ++j) {
      start(0)[j] = s_.weight_vector[j] + 0.1f * s_.random[j];
      start(1)[j] = s_.update_vector[j];
      start(2)[j] = s_.random[j];
      start(3)[j] = s_.weight_vector[j];
    }
    squares_.assign(parts_ * kStarts, 0.0);
  }

  void clear(int64_t part, int64_t starts) {
    std::fill(sum(part, 0), sum(part, starts), 0.0f);
    std::fill(&squares_[part * kStarts], &squares_[part * kStarts] + kStarts, 0.0);
  }

  void count(int64_t part, int64_t k, const float* y, int64_t rows) {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += static_cast<double>(y[r]) * y[r];
    squares_[part * kStarts + k] += sum;
  }

  // Moments, and one iteration of W from one start and of U from three.
  void first(int64_t part) {
    clear(part, kStarts);
    const int64_t cols = s_.cols, end = s_.rows * (part + 1) / parts_;
    const AdamScalars a = s_.adam;
    const float *x0 = start(0), *x1 = start(1), *x2 = start(2), *x3 = start(3);
    for (int64_t i = s_.rows * part / parts_; i < end; i += kRows) {
      const int64_t here = std::min(kRows, end - i);
      float y[kStarts][kRows];
      for (int64_t r = 0; r < here; ++r) {
        const int64_t at = (i + r) * cols;
        float* images[kStarts] = {&y[0][r], &y[1][r], &y[2][r], &y[3][r]};
        first_row(a, s_.w + at, s_.g + at, s_.m + at, s_.v + at, rows(part) + r * pad_, x0, x1, x2, x3, cols, images);
      }
      add_rows(sum(part, 0), y[0], s_.w + i * cols, cols, here, cols);
      for (int64_t k = 1; k < kStarts; ++k) add_rows(sum(part, k), y[k], rows(part), pad_, here, cols);
      for (int64_t k = 0; k < kStarts; ++k) count(part, k, y[k], here);
    }
  }

  // One more iteration of W from its vector and of U from two, or the write, or both. From the last row to the
  // first: those that came last before are still in the caches.
  template <bool Iterate, bool Write>
  void later(int64_t part, double factor) {
    if (Iterate) clear(part, 3);
    const int64_t cols = s_.cols, begin = s_.rows * part / parts_, end = s_.rows * (part + 1) / parts_;
    const AdamScalars a = s_.adam;
    const float *x0 = start(0), *x1 = start(1), *x2 = start(2);
    const float decay = static_cast<float>(1.0 - o_.lr * factor * o_.weight_decay);
    const float amount = static_cast<float>(-(o_.lr * factor / s_.correction));
    for (int64_t i = begin + (end - begin - 1) / kRows * kRows; i >= begin; i -= kRows) {
      const int64_t here = std::min(kRows, end - i);
      float y[3][kRows];
      for (int64_t r = 0; r < here; ++r) {
        const int64_t at = (i + r) * cols;
        if (Iterate) {
          float* images[3] = {&y[0][r], &y[1][r], &y[2][r]};
          later_row(a, s_.w + at, s_.m + at, s_.v + at, rows(part) + r * pad_, x0, x1, x2, cols, images);
        } else {
          write_row(a, s_.w + at, s_.m + at, s_.v + at, decay, amount, cols);
        }
      }
      if (!Iterate) continue;
      add_rows(sum(part, 0), y[0], s_.w + i * cols, cols, here, cols);
      add_rows(sum(part, 1), y[1], rows(part), pad_, here, cols);
      add_rows(sum(part, 2), y[2], rows(part), pad_, here, cols);
      for (int64_t k = 0; k < 3; ++k) count(part, k, y[k], here);
      if (!Write) continue;
      for (int64_t r = 0; r < here; ++r) {
        subtract_row(s_.w + (i + r) * cols, rows(part) + r * pad_, decay, amount, cols);
      }
    }
  }

  // Take back a step that was written with the factor `old` and make it with `better`.
  void correct(int64_t part, double old, double better) {
    const int64_t begin = s_.rows * part / parts_ * s_.cols, end = s_.rows * (part + 1) / parts_ * s_.cols;
    const AdamScalars a = s_.adam;
    const double decays[2] = {1.0 - o_.lr * old * o_.weight_decay, 1.0 - o_.lr * better * o_.weight_decay};
    const float decay = static_cast<float>(decays[1] / decays[0]);
    // w = (w1 + lr old u)/decay1, and w2 = decay2 w - lr better u
    const float amount = static_cast<float>(o_.lr / s_.correction * (old * decays[1] / decays[0] - better));
    write_row(a, s_.w + begin, s_.m + begin, s_.v + begin, decay, amount, end - begin);
  }

  // sigma of every start from the parts' sums; the best become the starts of the next iteration.
  void finish(int64_t starts) {
    double sigmas[kStarts];
    for (int64_t k = 0; k < starts; ++k) {
      double square = squares_[k];
      float* __restrict z = sum(0, k);
      for (int64_t part = 1; part < parts_; ++part) {
        const float* __restrict other = sum(part, k);
        for (int64_t j = 0; j < s_.cols; ++j) z[j] += other[j];
        square += squares_[part * kStarts + k];
      }
      sigmas[k] = square > 0 ? norm(z, s_.cols) / std::sqrt(square) : square;
    }
    int64_t best = 1;
    for (int64_t k = 2; k < starts; ++k) {
      if (sigmas[k] > sigmas[best]) best = k;
    }
    if (take(0, start(0), sigmas[0])) seen_weight_ = true;
    if (take(best, start(1), sigmas[best])) seen_update_ = true;
    std::copy(start(0), start(0) + s_.cols, start(2));
    s_.sigma_weight = std::max(s_.sigma_weight, sigmas[0]);
    s_.sigma_update = std::max(s_.sigma_update, sigmas[best] / s_.correction);
  }

  bool take(int64_t k, float* into, double sigma) {
    const float* z = sum(0, k);
    const double length = norm(z, s_.cols);
    if (!usable(sigma) || !usable(length)) return false;
    for (int64_t j = 0; j < s_.cols; ++j) into[j] = static_cast<float>(z[j] / length);
    return true;
  }

  void end() {
    if (seen_weight_) std::copy(start(0), start(0) + s_.cols, s_.weight_vector);
    if (seen_update_) std::copy(start(1), start(1) + s_.cols, s_.update_vector);
  }

  Section& s_;
  const Options& o_;
  int64_t parts_, pad_;
  float* space_;
  std::vector<double> squares_;
  bool seen_weight_ = false, seen_update_ = false;
};

inline at::Tensor adam_spectral(const Tensors& params, const Tensors& grads, const Tensors& averages,
                                const Tensors& squares, const Tensors& weight_vectors, const Tensors& update_vectors,
                                const Tensors& random_vectors, const std::vector<std::vector<int64_t>>& heights,
                                double lr, double weight_decay, double beta1, double beta2, double eps,
                                const Numbers& corrections, const Numbers& roots, double tau, double floor_unit,
                                int64_t power_iterations, bool maximize) {
  const Options options{lr, weight_decay, tau, floor_unit, power_iterations};
  std::vector<Section> sections;
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t cols = params[i].numel() / params[i].size(0);
    int64_t row = 0;
    for (size_t k = 0; k < heights[i].size(); ++k) {
      sections.push_back({floats(params[i]) + row * cols, floats(grads[i]) + row * cols,
                          floats(averages[i]) + row * cols, floats(squares[i]) + row * cols, heights[i][k], cols,
                          floats(weight_vectors[i]) + k * cols, floats(update_vectors[i]) + k * cols,
                          floats(random_vectors[i]), AdamScalars(beta1, beta2, eps, roots[i], maximize),
                          corrections[i], static_cast<int64_t>(i)});
      row += heights[i][k];
    }
  }
  Pool pool;
  int64_t widest = 0;
  for (const auto& section : sections) widest = std::max(widest, section.cols);
  const int64_t parts = pool.parts();
  float* space = scratch(std::max(Bounded::need(widest, parts), parts * Bounded::need(widest, 1)));
  pool.run([&](int64_t part) {
    int64_t turn = 0;
    for (auto& section : sections) {
      if (section.rows * section.cols >= kSmall || turn++ % parts != part) continue;
      Bounded(section, options, 1, space + part * Bounded::need(widest, 1)).step([](const auto& f) { f(0); });
    }
  });
  for (auto& section : sections) {
    if (section.rows * section.cols < kSmall) continue;
    Bounded(section, options, parts, space).step([&](const auto& f) { pool.run(f); });
  }

  auto report = at::zeros({static_cast<int64_t>(params.size()), 3}, at::kDouble);
  double* out = report.data_ptr<double>();
  for (const auto& section : sections) {
    double* row = out + 3 * section.owner;
    row[0] = std::max(row[0], section.sigma_weight);
    row[1] = std::max(row[1], section.sigma_update);
    row[2] += section.factor / heights[section.owner].size();
  }
  return report;
}

}  // namespace warmfree
