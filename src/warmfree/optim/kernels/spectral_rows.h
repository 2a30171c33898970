// What a spectrally bounded step does to the rows of weight and update: moments, images, sums, the write.
#pragma once

#include "rows.h"

namespace warmfree {

// Rows taken together, so that a sum over rows is loaded and stored once for all of them.
constexpr int64_t kRows = 4;
// One start for W, three for U.
constexpr int64_t kStarts = 4;

// Moments of a row, its update u, and what W's start x0 and U's starts x1 to x3 are mapped to.
inline void first_row(const AdamScalars& a, const float* w, const float* g, float* m, float* v, float* u,
                      const float* x, int64_t stride, int64_t cols, float* y) {
  Lanes y0{}, y1{}, y2{}, y3{};
  each(0, cols, [&](int64_t j, auto count) {
    fetch_to_write(m + j);
    fetch_to_write(v + j);
    fetch(g + j);
    fetch(w + j);
    const Lanes uj = a.update(m + j, v + j, g + j, count);
    store(u + j, uj, count);
    y0 += load(w + j, count) * load(x + j, count);
    y1 += uj * load(x + stride + j, count);
    y2 += uj * load(x + 2 * stride + j, count);
    y3 += uj * load(x + 3 * stride + j, count);
  });
  y[0] = total(y0);
  y[1] = total(y1);
  y[2] = total(y2);
  y[3] = total(y3);
}

inline void update_row(const AdamScalars& a, const float* m, const float* v, float* u, int64_t cols) {
  each(0, cols, [&](int64_t j, auto count) {
    fetch(m + j);
    fetch(v + j);
    store(u + j, a.update(load(m + j, count), load(v + j, count)), count);
  });
}

// What W's start x0 and U's starts x1 and x2 are mapped to by a row.
inline void later_row(const float* w, const float* u, const float* x, int64_t stride, int64_t cols, float* y) {
  Lanes y0{}, y1{}, y2{};
  each(0, cols, [&](int64_t j, auto count) {
    fetch_to_write(w + j);
    const Lanes uj = load(u + j, count);
    y0 += load(w + j, count) * load(x + j, count);
    y1 += uj * load(x + stride + j, count);
    y2 += uj * load(x + 2 * stride + j, count);
  });
  y[0] = total(y0);
  y[1] = total(y1);
  y[2] = total(y2);
}

// w = decay w + amount u of any number of rows, u from their moments.
inline void write_row(const AdamScalars& a, float* w, const float* m, const float* v, float decay, float amount,
                      int64_t cols) {
  each(0, cols, [&](int64_t j, auto count) {
    fetch(m + j);
    fetch(v + j);
    fetch_to_write(w + j);
    const Lanes u = a.update(load(m + j, count), load(v + j, count));
    store(w + j, load(w + j, count) * decay + amount * u, count);
  });
}

inline void write_row(float* w, const float* u, float decay, float amount, int64_t cols) {
  each(0, cols, [&](int64_t j, auto n) { store(w + j, load(w + j, n) * decay + amount * load(u + j, n), n); });
}

// z_k += sum over four rows of y_rk u_r for K starts, and if asked the write w = decay w + amount u.
template <int K>
inline void add_rows(float* z, int64_t z_stride, const float (*y)[kStarts], int first, const float* u, int64_t stride,
                     int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r += kRows) {
    Lanes weights[K][kRows];
    for (int k = 0; k < K; ++k) {
      for (int64_t q = 0; q < kRows; ++q) weights[k][q] = Lanes{} + (r + q < rows ? y[r + q][first + k] : 0.0f);
    }
    const float* u0 = u + r * stride;
    const float* u1 = r + 1 < rows ? u0 + stride : u0;
    const float* u2 = r + 2 < rows ? u1 + stride : u0;
    const float* u3 = r + 3 < rows ? u2 + stride : u0;
    each(0, cols, [&](int64_t j, auto count) {
      const Lanes a = load(u0 + j, count), b = load(u1 + j, count), c = load(u2 + j, count), d = load(u3 + j, count);
      for (int k = 0; k < K; ++k) {
        float* zk = z + k * z_stride + j;
        const Lanes sum = (weights[k][0] * a + weights[k][1] * b) + (weights[k][2] * c + weights[k][3] * d);
        store(zk, load(zk, count) + sum, count);
      }
    });
  }
}

}  // namespace warmfree
