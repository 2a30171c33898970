// A step of Adam or Lion that turns every row by an angle and keeps its norm: one pass, each row in the first cache.
#pragma once

#include "rows.h"

namespace warmfree {

// See angular.py: the norm at which a row that was zero begins to rotate, and what of a difference is rounding.
const double kBornNorm = std::sqrt(1.0 / 3.0);
constexpr double kRounding = 8.0 * std::numeric_limits<float>::epsilon();
// Sums in float32 are made over so many numbers, sums of those in float64.
constexpr int64_t kChunk = 1024;

struct Turning {
  double lr, decay, eps;
};

// Sums of up to three products over a row, by chunks.
template <int K, class F>
WARMFREE_INLINE void sums(int64_t cols, double* totals, F&& f) {
  for (int k = 0; k < K; ++k) totals[k] = 0.0;
  for (int64_t chunk = 0; chunk < cols; chunk += kChunk) {
    const int64_t end = std::min(cols, chunk + kChunk);
    Lanes even[K] = {}, odd[K] = {};  // two, since an addition must wait for the one before
    int64_t j = chunk;
    for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
      f(j, Full{}, even);
      f(j + kLanes, Full{}, odd);
    }
    each(j, end, [&](int64_t at, auto count) { f(at, count, even); });
    for (int k = 0; k < K; ++k) totals[k] += total(even[k] + odd[k]);
  }
}

// One row. direction(j, count) makes the update of some elements; u is room for a row. Returns the angle, or -1 for a
// row that does not rotate.
template <class Direction>
inline double turn_row(float* w, float* u, int64_t cols, float* kept_norm, float* average, const Turning& options,
                       double angle, double correction, Direction&& direction) {
  double found[3];
  sums<3>(cols, found, [&](int64_t j, auto count, Lanes* parts) {
    fetch_to_write(w + j);
    const Lanes uj = direction(j, count), wj = load(w + j, count);
    store(u + j, uj, count);
    parts[0] += uj * uj;
    parts[1] += wj * wj;
    parts[2] += uj * wj;
  });
  const double whole = std::sqrt(found[0]), norm = std::sqrt(found[1]);
  if (*kept_norm == 0.0f && norm >= kBornNorm) *kept_norm = static_cast<float>(norm);
  const double kept = *kept_norm;
  const bool rotates = kept > 0;

  double square = found[0];
  if (rotates) {
    const float radial = static_cast<float>(found[2] / (found[1] > 0 ? found[1] : 1.0));
    sums<1>(cols, &square, [&](int64_t j, auto count, Lanes* parts) {
      const Lanes uj = load(u + j, count) - radial * load(w + j, count);
      store(u + j, uj, count);
      parts[0] += uj * uj;
    });
  }
  double length = std::sqrt(square);
  if (!(length > kRounding * whole)) length = 0.0;
  const double old = *average;
  *average = static_cast<float>(old + (1.0 - options.decay) * (length * length - old));
  double divisor = options.decay > 0 ? std::sqrt(*average / correction) : length;
  divisor = length > 0 ? divisor + options.eps : 0.0;
  const double step = rotates ? (divisor > 0 ? angle / divisor * kept : 0.0) : options.lr;

  const float amount = static_cast<float>(-step);
  double after;
  sums<1>(cols, &after, [&](int64_t j, auto count, Lanes* parts) {
    const Lanes wj = load(w + j, count) + amount * load(u + j, count);
    store(w + j, wj, count);
    parts[0] += wj * wj;
  });
  if (!rotates) return -1.0;
  if (after > 0) {
    const float scale = static_cast<float>(kept / std::sqrt(after));
    each(0, cols, [&](int64_t j, auto count) { store(w + j, scale * load(w + j, count), count); });
  }
  return std::atan(step * length / kept);
}

// All rows of all tensors; row(part, tensor, first element of the row, room) steps one and returns its angle. Returns
// each tensor's mean over the rows that rotate.
template <class Row>
at::Tensor turn(const Tensors& params, Row&& row) {
  Pool pool;
  const int64_t count = params.size(), parts = pool.parts();
  std::vector<int64_t> units;
  int64_t widest = 0;
  for (const auto& param : params) {
    units.push_back(param.numel() / param.size(0));
    widest = std::max(widest, padded(units.back()));
  }
  float* space = scratch(parts * widest);
  const auto runs = cut(params, units, parts);
  Numbers angles(parts * count * 2, 0.0);
  pool.run([&](int64_t part) {
    for (const Span& span : runs[part]) {
      double* mine = &angles[(part * count + span.tensor) * 2];
      for (int64_t at = span.begin; at < span.end; at += units[span.tensor]) {
        const double angle = row(span.tensor, at, units[span.tensor], space + part * widest);
        if (!(angle >= 0)) continue;
        mine[0] += angle;
        mine[1] += 1;
      }
    }
  });
  auto report = at::zeros({count}, at::kDouble);
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0, rows = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += angles[(part * count + i) * 2];
      rows += angles[(part * count + i) * 2 + 1];
    }
    report.data_ptr<double>()[i] = sum / std::max(rows, 1.0);
  }
  return report;
}

}  // namespace warmfree
