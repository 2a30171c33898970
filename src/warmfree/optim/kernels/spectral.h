// Adam's step under a bound on sigma_1, with the power iterations made while rows pass through the caches.
#pragma once

#include "spectral_rows.h"

namespace warmfree {

// Matrices below this many numbers are stepped one by a thread; larger ones by all threads together.
constexpr int64_t kSmall = 1 << 16;
// After one power iteration the estimate of sigma_1(U) is low by a factor of up to about 3 for a new direction in
// noise at width 768. Where even this many times the estimate is allowed, no better one is needed.
constexpr double kMargin = 4.0;
// A factor that a last iteration would change by less than this stays: no pass over memory to correct it.
constexpr double kAgree = 2e-3;
// The update of a matrix of at most so many numbers is kept between the passes, in the shared cache; of a larger one it
// is made again from the moments.
constexpr int64_t kKept = 1 << 22;

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

inline double norm(const float* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < count; ++j) sum += static_cast<double>(x[j]) * x[j];
  return std::sqrt(sum);
}

inline bool usable(double sigma) { return sigma > 0 && std::isfinite(sigma); }

// Power iterations of one section's weight and update, and the step.
class Bounded {
 public:
  Bounded(Section& section, const Options& options, int64_t parts, float* space)
      : s_(section), o_(options), parts_(parts), pad_(padded(section.cols)), space_(space) {}

  // Floats of scratch that a section of so many columns needs, apart from its update, which follows.
  static int64_t need(int64_t cols, int64_t parts) {
    return padded(cols) * (kStarts + parts * (kStarts + kRows));
  }

  template <class Run>
  void step(const Run& run) {
    // What is written with a factor that turns out wrong is corrected from the written weights. That needs steps
    // that are small against them: elements of Adam's update are of order 1.
    const bool reversible = o_.tau <= 1.0 && o_.lr <= o_.tau && o_.lr * o_.weight_decay < 0.5;
    // The length of the stored update vector is the last step's sigma_1(U)/sigma_1(W): where the bound was far, the
    // whole step is written in the first pass. A length of 1 is one that nobody has set.
    const double last = norm(s_.update_vector, s_.cols);
    const bool hopeful = reversible && std::abs(last - 1.0) > 1e-4 && o_.lr * last * kMargin <= o_.tau;
    if (!hopeful && s_.rows * s_.cols <= kKept) kept_ = space_ + need(s_.cols, parts_);
    begin();
    run([&](int64_t part) { hopeful ? first<true>(part) : first<false>(part); });
    finish(kStarts);
    if (hopeful && !near()) return end();
    if (hopeful) run([&](int64_t part) { correct(part, 1.0, 0.0); });

    int64_t made = 1;
    const bool iterate = made < o_.iterations && near();
    for (; iterate && made < o_.iterations - (reversible ? 1 : 0); ++made) {
      run([&](int64_t part) { later<true, false>(part, 1.0); });
      finish(3);
    }
    s_.factor = factor();
    if (!iterate || !reversible) {
      run([&](int64_t part) { later<false, true>(part, s_.factor); });
      return end();
    }
    run([&](int64_t part) { later<true, true>(part, s_.factor); });
    finish(3);
    const double old = s_.factor, better = factor();
    if (std::abs(better - old) > kAgree * better) {
      run([&](int64_t part) { correct(part, old, better); });
      s_.factor = better;
    }
    end();
  }

 private:
  double weight_size() const {
    return std::max(s_.sigma_weight, o_.floor_unit * (std::sqrt(double(s_.rows)) + std::sqrt(double(s_.cols))));
  }

  bool near() const { return o_.lr * s_.sigma_update * kMargin > o_.tau * weight_size(); }

  double factor() const {
    const double allowed = o_.tau * weight_size(), wanted = o_.lr * s_.sigma_update;
    return wanted > allowed ? allowed / wanted : 1.0;
  }

  float* start(int64_t k) { return space_ + k * pad_; }
  float* sum(int64_t part, int64_t k) { return space_ + (kStarts + part * (kStarts + kRows) + k) * pad_; }

  // The update of row i, the r-th of those taken together.
  float* update(int64_t part, int64_t i, int64_t r) {
    return kept_ ? kept_ + i * s_.cols : sum(part, kStarts) + r * pad_;
  }

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

  void count(int64_t part, const float (*y)[kStarts], int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < kStarts; ++k) squares_[part * kStarts + k] += static_cast<double>(y[r][k]) * y[r][k];
    }
  }

  // Moments, one iteration of W from one start and of U from three, and if asked the whole step.
  template <bool Write>
  void first(int64_t part) {
    clear(part, kStarts);
    const int64_t cols = s_.cols, stride = kept_ ? cols : pad_, end = s_.rows * (part + 1) / parts_;
    const AdamScalars a = s_.adam;
    for (int64_t i = s_.rows * part / parts_; i < end; i += kRows) {
      const int64_t here = std::min(kRows, end - i);
      float y[kRows][kStarts];
      for (int64_t r = 0; r < here; ++r) {
        const int64_t at = (i + r) * cols;
        float* u = update(part, i + r, r);
        first_row(a, s_.w + at, s_.g + at, s_.m + at, s_.v + at, u, start(0), pad_, cols, y[r]);
      }
      const int64_t next = (i + here) * cols;
      each(0, 2 * cols, [&](int64_t j, auto) {  // memory must not wait for the sums
        fetch(s_.g + next + j);
        fetch(s_.w + next + j);
        fetch_to_write(s_.m + next + j);
        fetch_to_write(s_.v + next + j);
      });
      add_rows<1>(sum(part, 0), pad_, y, 0, s_.w + i * cols, cols, here, cols);
      add_rows<3>(sum(part, 1), pad_, y, 1, update(part, i, 0), stride, here, cols);
      count(part, y, here);
      if (Write) write_rows(part, i, here, 1.0);
    }
  }

  void write_rows(int64_t part, int64_t row, int64_t count, double factor) {
    const float decay = static_cast<float>(1.0 - o_.lr * factor * o_.weight_decay);
    const float amount = static_cast<float>(-(o_.lr * factor / s_.correction));
    for (int64_t r = 0; r < count; ++r) {
      write_row(s_.w + (row + r) * s_.cols, update(part, row + r, r), decay, amount, s_.cols);
    }
  }

  // One more iteration of W from its vector and of U from two, or the write, or both.
  template <bool Iterate, bool Write>
  void later(int64_t part, double factor) {
    if (Iterate) clear(part, 3);
    const int64_t cols = s_.cols, stride = kept_ ? cols : pad_;
    const int64_t begin = s_.rows * part / parts_, end = s_.rows * (part + 1) / parts_;
    const AdamScalars a = s_.adam;
    const float decay = static_cast<float>(1.0 - o_.lr * factor * o_.weight_decay);
    const float amount = static_cast<float>(-(o_.lr * factor / s_.correction));
    for (int64_t i = begin; i < end; i += kRows) {
      const int64_t here = std::min(kRows, end - i);
      if (!Iterate) {
        write(i * cols, here * cols, decay, amount);
        continue;
      }
      float y[kRows][kStarts] = {};
      for (int64_t r = 0; r < here; ++r) {
        const int64_t at = (i + r) * cols;
        float* u = update(part, i + r, r);
        if (!kept_) update_row(a, s_.m + at, s_.v + at, u, cols);
        later_row(s_.w + at, u, start(0), pad_, cols, y[r]);
      }
      add_rows<1>(sum(part, 0), pad_, y, 0, s_.w + i * cols, cols, here, cols);
      add_rows<2>(sum(part, 1), pad_, y, 1, update(part, i, 0), stride, here, cols);
      count(part, y, here);
      if (Write) write_rows(part, i, here, factor);
    }
  }

  // Take back a step that was written with the factor `old` and make it with `better`.
  void correct(int64_t part, double old, double better) {
    const int64_t begin = s_.rows * part / parts_ * s_.cols, end = s_.rows * (part + 1) / parts_ * s_.cols;
    const double decays[2] = {1.0 - o_.lr * old * o_.weight_decay, 1.0 - o_.lr * better * o_.weight_decay};
    const float decay = static_cast<float>(decays[1] / decays[0]);
    // w = (w1 + lr old u)/decay1, and w2 = decay2 w - lr better u
    const float amount = static_cast<float>(o_.lr / s_.correction * (old * decays[1] / decays[0] - better));
    write(begin, end - begin, decay, amount);
  }

  void write(int64_t at, int64_t count, float decay, float amount) {
    if (kept_) return write_row(s_.w + at, kept_ + at, decay, amount, count);
    write_row(s_.adam, s_.w + at, s_.m + at, s_.v + at, decay, amount, count);
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
    if (!seen_update_) return;
    const double size = weight_size(), length = size > 0 ? s_.sigma_update / size : 1.0;
    const float scale = static_cast<float>(std::clamp(length, 1e-6, 1e6));
    for (int64_t j = 0; j < s_.cols; ++j) s_.update_vector[j] = scale * start(1)[j];
  }

  Section& s_;
  const Options& o_;
  int64_t parts_, pad_;
  float* space_;
  float* kept_ = nullptr;
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
  expect_alike(params, {&grads, &averages, &squares});
  std::vector<Section> sections;
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t cols = params[i].numel() / params[i].size(0), count = heights[i].size();
    expect(weight_vectors[i], count * cols, "weight_vectors");
    expect(update_vectors[i], count * cols, "update_vectors");
    expect(random_vectors[i], cols, "random_vectors");
    TORCH_CHECK(std::accumulate(heights[i].begin(), heights[i].end(), int64_t{0}) == params[i].size(0),
                "heights must add up to the rows");
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
  const int64_t parts = pool.parts();
  int64_t whole = 0, alone = 0;  // scratch of a section that all threads step together, and one by itself
  for (const auto& section : sections) {
    const int64_t count = section.rows * section.cols;
    int64_t& most = count < kSmall ? alone : whole;
    const int64_t need = Bounded::need(section.cols, count < kSmall ? 1 : parts) + (count <= kKept ? padded(count) : 0);
    most = std::max(most, need);
  }
  float* space = scratch(std::max(whole, parts * alone));
  pool.run([&](int64_t part) {
    int64_t turn = 0;
    for (auto& section : sections) {
      if (section.rows * section.cols >= kSmall || turn++ % parts != part) continue;
      Bounded(section, options, 1, space + part * alone).step([](const auto& f) { f(0); });
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
