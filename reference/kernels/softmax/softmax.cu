// Softmax, log-softmax and log-sum-exp over the rows of (rows, n), for float, half and bfloat16, sm_80 and newer.
//
// Three ways, chosen by cuda_gpu.py from the shape:
//   rows_warp_*     short rows: 1 to 32 lanes hold a row in registers; x is read once
//   rows_shared_*   a block keeps its row in shared memory; x is read once
//   rows_twice_*    a block reads its row twice, the second time mostly from L2
//   partials_*      a long row in chunks, one block each: pass 1 leaves a Partial; then finish_* (pass 2) merges them
//                   in every block, or log_sum_exp_* once
// Pass 1 is the paper's (extended exponents, no maximum) or the online one. The paper's three-pass baselines are there
// for long rows: maxima_*, then sum_exp_* and finish_* (recompute) or sum_store_exp_* and scale_* (reload).
// The equations and constants are those of numba_kernels.py; for 16-bit types 2^f is the hardware's ex2.approx (about 2
// units in the last place of float) instead of the polynomial, whose accuracy their rounding would lose. x and y may be
// the same memory.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#define DEVICE __device__ __forceinline__

namespace {

constexpr int SOFTMAX = 0, LOG_SOFTMAX = 1, LOG_SUM_EXP = 2;  // mode
constexpr unsigned ALL = 0xffffffffu;

constexpr float LOG2E = 0x1.715476p+0f, LOG2E_LOW = 0x1.4ae0cp-26f;
constexpr float MINUS_LN2_HIGH = -0x1.62E43p-1f, MINUS_LN2_LOW = 0x1.05C61p-29f;
constexpr float C1 = 0x1.FFFFF6p-1f, C2 = 0x1.FFFDC6p-2f, C3 = 0x1.555A80p-3f, C4 = 0x1.573A1Ap-5f;
constexpr float C5 = 0x1.0F9F9Cp-7f;
constexpr double LN2 = 0x1.62e42fefa39efp-1, LOG2E_DOUBLE = 0x1.71547652b82fep+0;
constexpr float TO_INTEGER = 0x1.8p23f;          // adding and subtracting it rounds to an integer
constexpr float EXPONENT_MAGIC = 0x1.8000FEp23f;  // adding it leaves an integer's biased exponent in the low bits
constexpr float ZERO_EXPONENT = -127.0f;          // 2^-127 is where the bit pattern gives exactly 0
// The split is accurate for |x| <= 2^17. Rows whose maximum lies beyond are summed relative to it instead.
constexpr float LOWEST = -131072.0f, LOWEST_EXPONENT = -189097.0f;
constexpr float LARGEST = 130000.0f, LARGEST_EXPONENT = 188000.0f;
constexpr float MOST_NEGATIVE = -0x1.fffffep127f;

DEVICE float infinity() { return __int_as_float(0x7f800000); }
DEVICE float not_a_number() { return __int_as_float(0x7fc00000); }

#ifdef __CUDA_ARCH__
DEVICE float hardware_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float larger_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
DEVICE float product_or_zero(float a, float b) {  // what would be denormal becomes 0
  float y;
  asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
#else  // the meaning of the three instructions
__device__ inline float hardware_exp2(float x) { return x < -126.0f ? 0.0f : exp2f(x); }
__device__ inline float larger_or_nan(float a, float b) { return a != a || a > b ? a : b; }
__device__ inline float product_or_zero(float a, float b) { return fabsf(a * b) < 0x1p-126f ? 0.0f : a * b; }
#endif

// ---- elements and 16-byte vectors of them

template <typename T> struct Elements { static constexpr int WIDTH = 16 / sizeof(T); };

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(__half v) { return __half2float(v); }
DEVICE float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T> DEVICE T from_float(float v);
template <> DEVICE float from_float<float>(float v) { return v; }
template <> DEVICE __half from_float<__half>(float v) { return __float2half_rn(v); }
template <> DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

template <typename T> union Vector {
  uint4 bits;
  T element[Elements<T>::WIDTH];
  DEVICE Vector() {}
};

template <typename T> DEVICE void unpack(uint4 bits, float* values) {
  Vector<T> v;
  v.bits = bits;
#pragma unroll
  for (int j = 0; j < Elements<T>::WIDTH; ++j) values[j] = to_float(v.element[j]);
}

template <typename T> DEVICE uint4 pack(const float* values) {
  Vector<T> v;
#pragma unroll
  for (int j = 0; j < Elements<T>::WIDTH; ++j) v.element[j] = from_float<T>(values[j]);
  return v.bits;
}

// ---- e^x = p * 2^n

// n, an integer held as float, and what is left of x: natural for float, binary for 16-bit types.
template <typename T> DEVICE float reduce(float x, float& n) {
  n = fmaf(x, LOG2E, TO_INTEGER) - TO_INTEGER;
  if constexpr (sizeof(T) == 4) return fmaf(n, MINUS_LN2_LOW, fmaf(n, MINUS_LN2_HIGH, x));
  return fmaf(x, LOG2E_LOW, fmaf(x, LOG2E, -n));
}

// (e^t - 1) / t
DEVICE float slope(float t) { return fmaf(fmaf(fmaf(fmaf(t, C5, C4), t, C3), t, C2), t, C1); }

template <typename T> DEVICE float split(float x, float& n) {
  float t = reduce<T>(x, n);
  if constexpr (sizeof(T) == 4) return fmaf(slope(t), t, 1.0f);
  return hardware_exp2(t);
}

// 2^n for an integer n <= 1, 0 from -127 downwards. A NaN is in p as well, so it need not survive here.
DEVICE float weight(float n) {
  return __int_as_float(__float_as_int(fmaxf(n, ZERO_EXPONENT) + EXPONENT_MAGIC) << 23);
}

// e^x for x <= 0, 0 where it would be denormal; NaN stays NaN.
template <typename T> DEVICE float exp_of(float x) {
  if constexpr (sizeof(T) < 4) return hardware_exp2(x * LOG2E);
  float n, p = split<T>(larger_or_nan(x, -88.0f), n);
  return p * weight(n);
}

// ---- sums

// sum * 2^exponent, or sum * e^maximum where exponent is -inf. A sum relative to a maximum of +inf is +inf, or NaN.
struct Partial {
  double sum;
  float exponent, maximum;
  DEVICE bool shifted() const { return exponent == -infinity(); }
  DEVICE double scale() const { return shifted() ? double(maximum) * LOG2E_DOUBLE : double(exponent); }
};

__device__ inline Partial merge(Partial a, Partial b) {
  double difference = a.scale() - b.scale();
  if (difference < 0.0) {
    Partial c = a;
    a = b;
    b = c;
    difference = -difference;
  }
  float factor = 1.0f;
  if (difference > 0.0) {
    bool powers = !a.shifted() && !b.shifted();
    factor = powers ? weight(float(-difference)) : exp_of<float>(float(-difference * LN2));
  }
  a.sum += b.sum * factor;
  return a;
}

// The sums of one thread; `total + rest` (two floats, so that the error does not grow) are added to once for 4 vectors.
template <typename T> struct Extended {
  float sum = 0.0f, exponent = LOWEST_EXPONENT, total = 0.0f, rest = 0.0f, total_exponent = LOWEST_EXPONENT;

  // e' = max(e, n), m' = m * 2^(e - e') + sum(p * 2^(n - e'))
  template <int COUNT> DEVICE void add(const float* x) {
    float p[COUNT], n[COUNT], raised = exponent;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
      p[j] = split<T>(larger_or_nan(x[j], LOWEST), n[j]);
      raised = fmaxf(raised, n[j]);
    }
    sum *= weight(exponent - raised);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) sum = fmaf(p[j], weight(n[j] - raised), sum);
    exponent = raised;
  }
  DEVICE float rescale() {
    float factor = weight(total_exponent - exponent);
    total_exponent = exponent;
    return factor;
  }
  DEVICE Partial result() const { return {double(total) + double(rest), total_exponent, 0.0f}; }
  DEVICE static Partial nothing() { return {0.0, LOWEST_EXPONENT, 0.0f}; }
};

template <typename T> struct Online {
  float sum = 0.0f, maximum = MOST_NEGATIVE, total = 0.0f, rest = 0.0f, total_maximum = MOST_NEGATIVE;

  // m' = max(m, x), s' = s * e^(m - m') + sum(e^(x - m'))
  template <int COUNT> DEVICE void add(const float* x) {
    float raised = maximum;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) raised = fmaxf(raised, x[j]);
    sum *= exp_of<T>(maximum - raised);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) sum += exp_of<T>(x[j] - raised);
    maximum = raised;
  }
  DEVICE float rescale() {
    float factor = exp_of<T>(total_maximum - maximum);
    total_maximum = maximum;
    return factor;
  }
  DEVICE Partial result() const { return {double(total) + double(rest), -infinity(), total_maximum}; }
  DEVICE static Partial nothing() { return {0.0, -infinity(), MOST_NEGATIVE}; }
};

// Only the maximum.
template <typename T> struct Maximum {
  float maximum = MOST_NEGATIVE;

  template <int COUNT> DEVICE void add(const float* x) {
#pragma unroll
    for (int j = 0; j < COUNT; ++j) maximum = fmaxf(maximum, x[j]);
  }
  DEVICE Partial result() const { return {0.0, -infinity(), maximum}; }
  DEVICE static Partial nothing() { return {0.0, -infinity(), MOST_NEGATIVE}; }
};

// sum(e^(x - maximum)) for a known maximum.
template <typename T> struct Terms {
  float maximum, sum = 0.0f, total = 0.0f, rest = 0.0f;

  DEVICE float add(float x) {
    float term = exp_of<T>(x - maximum);
    sum += term;
    return term;
  }
  DEVICE float rescale() const { return 1.0f; }
  DEVICE Partial result() const { return {double(total) + double(rest), -infinity(), maximum}; }
};

template <typename T> DEVICE void fold(Maximum<T>&) {}

template <typename Sum> DEVICE void fold(Sum& s) {
  float factor = s.rescale(), before = __fmul_rn(s.total, factor);
  float after = __fadd_rn(before, s.sum), part = __fsub_rn(after, before);
  s.rest = s.rest * factor + (__fsub_rn(before, __fsub_rn(after, part)) + __fsub_rn(s.sum, part));
  s.total = after;
  s.sum = 0.0f;
}

__device__ inline Partial over_warp(Partial p) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    p = merge(p, {__shfl_xor_sync(ALL, p.sum, offset), __shfl_xor_sync(ALL, p.exponent, offset),
                  __shfl_xor_sync(ALL, p.maximum, offset)});
  }
  return p;
}

// The block's sum, the same in every thread.
__device__ inline Partial over_block(Partial p, Partial nothing) {
  __shared__ Partial of_warp[32];
  p = over_warp(p);
  __syncthreads();  // whoever still reads an earlier result
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = p;
  __syncthreads();
  return over_warp(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : nothing);
}

// ---- walks over a part of a row

// Elements begin..head-1 and from head + vectors * WIDTH to end-1 one by one, those between in 16-byte vectors.
struct Cut {
  int begin, head, vectors, end;
};

DEVICE int past_boundary(const void* row, int element, int size) {
  return int((reinterpret_cast<unsigned long long>(row) / size + element) % (16 / size));
}

// Vectors need x and y to be equally far from a 16-byte boundary; else every element goes one by one.
template <typename T> DEVICE Cut cut(const T* x, const T* y, int begin, int end) {
  constexpr int WIDTH = Elements<T>::WIDTH;
  int head = begin + (WIDTH - past_boundary(x, begin, sizeof(T))) % WIDTH;
  if (head > end || past_boundary(x, 0, sizeof(T)) != past_boundary(y, 0, sizeof(T))) head = end;
  return {begin, head, (end - head) / WIDTH, end};
}

enum Reading { KEPT, LAST };  // whether L2 should hold what is read

template <Reading R, typename V> DEVICE V load(const V* place) {
  if constexpr (R == LAST) return __ldcs(place);
  return *place;
}

// one(i, element), many(first i, vector) for the block's threads; after() when a few vectors have been seen.
template <typename T, Reading R, bool BACKWARDS, typename One, typename Many, typename After>
DEVICE void walk(const T* x, const Cut& c, One one, Many many, After after) {
  constexpr int WIDTH = Elements<T>::WIDTH, UNROLL = 4;
  const uint4* vectors = reinterpret_cast<const uint4*>(x + c.head);
  auto place = [&](int v) { return BACKWARDS ? c.vectors - 1 - v : v; };
  int v = threadIdx.x, step = blockDim.x;
  for (; v + (UNROLL - 1) * step < c.vectors; v += UNROLL * step) {
    uint4 bits[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) bits[u] = load<R>(vectors + place(v + u * step));
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) many(c.head + place(v + u * step) * WIDTH, bits[u]);
    after();
  }
  for (; v < c.vectors; v += step) many(c.head + place(v) * WIDTH, load<R>(vectors + place(v)));
  after();
  for (int i = c.begin + threadIdx.x; i < c.head; i += step) {
    one(i, x[i]);
    after();
  }
  for (int i = c.head + c.vectors * WIDTH + threadIdx.x; i < c.end; i += step) one(i, x[i]);
  after();
}

template <typename T, typename Sum, bool COPY> DEVICE Partial sum_over(const T* x, const Cut& c, T* copy) {
  constexpr int WIDTH = Elements<T>::WIDTH;
  Sum sum;
  walk<T, KEPT, false>(
      x, c,
      [&](int i, T element) {
        if constexpr (COPY) copy[i] = element;
        float value = to_float(element);
        sum.template add<1>(&value);
      },
      [&](int i, uint4 bits) {
        if constexpr (COPY) *reinterpret_cast<uint4*>(copy + i) = bits;
        float values[WIDTH];
        unpack<T>(bits, values);
        sum.template add<WIDTH>(values);
      },
      [&] { fold(sum); });
  return over_block(sum.result(), Sum::nothing());
}

// A sum relative to +inf says whether there was NaN.
template <typename T> DEVICE Partial with_infinity(Partial p, const T* x, const Cut& c) {
  if (p.maximum != infinity()) return p;
  bool nan = false;
  for (int i = c.begin + threadIdx.x; i < c.end; i += blockDim.x) nan |= to_float(x[i]) != to_float(x[i]);
  p.sum = __syncthreads_or(nan) ? not_a_number() : infinity();
  return p;
}

// The paper's pass 1, or the online one; rows beyond the range of the former are summed again by the latter.
template <typename T, bool ONLINE, bool COPY> DEVICE Partial pass_1(const T* x, const Cut& c, T* copy) {
  if constexpr (!ONLINE) {
    Partial p = sum_over<T, Extended<T>, COPY>(x, c, copy);
    if (fabsf(p.exponent) < LARGEST_EXPONENT) return p;
  }
  return with_infinity<T>(sum_over<T, Online<T>, COPY && ONLINE>(x, c, copy), x, c);
}

// ---- results

// softmax(x) = e^(x - shift) * (r + r_low) * 2^-k; log-softmax(x) = x - shift - high - low
struct Norm {
  float shift, r, r_low, k, high, low;
};

__device__ inline double logarithm(const Partial& p) {  // of the sum, relative to the maximum where it is shifted
  return log(p.sum) + (p.shifted() ? 0.0 : p.exponent * LN2);
}

__device__ inline Norm normaliser(const Partial& p, int mode) {
  Norm norm = {p.shifted() ? p.maximum : 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  bool undefined = p.shifted() && p.maximum == infinity();
  if (mode == SOFTMAX) {
    int power;
    double inverse = 0.5 / frexp(p.sum, &power);
    norm.r = undefined ? not_a_number() : float(inverse);
    norm.r_low = float(inverse - norm.r);
    norm.k = (p.shifted() ? 0.0f : p.exponent) + float(power - 1);
  } else {
    double whole = undefined ? not_a_number() : logarithm(p);
    norm.high = float(whole);
    norm.low = float(whole - norm.high);
  }
  return norm;
}

// With p = 1 + t * slope, p * r is built as r + (r_low + slope * (r * t)): one rounding that counts instead of three.
template <typename T> DEVICE float softmax_of(float x, const Norm& norm) {
  float n, t = reduce<T>(larger_or_nan(x - norm.shift, LOWEST), n), scaled;
  if constexpr (sizeof(T) == 4)
    scaled = norm.r + fmaf(slope(t), norm.r * t, norm.r_low);
  else
    scaled = hardware_exp2(t) * norm.r;
  return scaled * weight(n - norm.k);
}

template <typename T, Reading R, bool BACKWARDS, typename F>
DEVICE void map_over(const T* x, T* y, const Cut& c, F f) {
  walk<T, R, BACKWARDS>(
      x, c, [&](int i, T element) { y[i] = from_float<T>(f(to_float(element))); },
      [&](int i, uint4 bits) {
        float values[Elements<T>::WIDTH];
        unpack<T>(bits, values);
#pragma unroll
        for (int j = 0; j < Elements<T>::WIDTH; ++j) values[j] = f(values[j]);
        __stcs(reinterpret_cast<uint4*>(y + i), pack<T>(values));
      },
      [] {});
}

template <typename T, Reading R, bool BACKWARDS>
DEVICE void pass_2(const T* x, T* y, const Cut& c, const Partial& p, int mode) {
  Norm norm = normaliser(p, mode);
  if (mode == SOFTMAX)
    map_over<T, R, BACKWARDS>(x, y, c, [&](float v) { return softmax_of<T>(v, norm); });
  else
    map_over<T, R, BACKWARDS>(x, y, c, [&](float v) { return ((v - norm.shift) - norm.high) - norm.low; });
}

template <typename T> DEVICE void store_log_sum_exp(T* y, const Partial& p) {
  if (threadIdx.x == 0) *y = from_float<T>(float(logarithm(p) + (p.shifted() ? double(p.maximum) : 0.0)));
}

// ---- kernels' bodies

// Lane `lane` of `lanes` holds elements (step * lanes + lane) * WIDTH + j of its row.
template <typename T, int WIDTH, int STEPS>
DEVICE void rows_warp(const T* x, T* y, long long rows, int n, int lanes, int mode) {
  constexpr int COUNT = WIDTH * STEPS;
  int lane = threadIdx.x & (lanes - 1);
  long long stride = (long long)gridDim.x * (blockDim.x / lanes);
  long long first = (long long)blockIdx.x * (blockDim.x / lanes);
  for (; first < rows; first += stride) {  // all threads of a block take as many turns
    long long row = first + threadIdx.x / lanes;
    bool live = row < rows;
    const T* from = x + row * n;
    float values[COUNT];
    uint4 bits[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      int i = (s * lanes + lane) * WIDTH;
      if constexpr (WIDTH == 1) {
        values[s] = live && i < n ? to_float(__ldcs(from + i)) : -infinity();
      } else {
        if (live && i < n) bits[s] = __ldcs(reinterpret_cast<const uint4*>(from + i));
      }
    }
    if constexpr (WIDTH > 1) {
#pragma unroll
      for (int s = 0; s < STEPS; ++s) {
        if (live && (s * lanes + lane) * WIDTH < n)
          unpack<T>(bits[s], values + s * WIDTH);
        else
          for (int j = 0; j < WIDTH; ++j) values[s * WIDTH + j] = -infinity();
      }
    }
    float maximum = -infinity();
#pragma unroll
    for (int c = 0; c < COUNT; ++c) maximum = fmaxf(maximum, values[c]);
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      maximum = fmaxf(maximum, __shfl_xor_sync(ALL, maximum, offset));
    // Beyond the range of the split, relative to the maximum; -inf - -inf and inf - inf rightly make the row NaN.
    float shift = fabsf(maximum) < LARGEST ? 0.0f : maximum, exponent;
    float left = reduce<float>(maximum - shift, exponent), sums[4] = {};  // four, so that the error stays small
    bool nan = false;
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
      float n_c, p = split<T>(larger_or_nan(values[c] - shift, LOWEST), n_c);
      float term = p * weight(n_c - exponent);
      sums[c % 4] += term;
      nan |= values[c] != values[c];
      if (mode == SOFTMAX) values[c] = term;
    }
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL, sum, offset);
    if (mode == LOG_SUM_EXP) {
      unsigned nans = __ballot_sync(ALL, nan);
      if (lanes < 32) nans = nans >> ((threadIdx.x & 31) & ~(lanes - 1)) & ((1u << lanes) - 1);
      float found = fabsf(maximum) == infinity() ? (nans ? not_a_number() : maximum) : maximum + (logf(sum) - left);
      if (live && lane == 0) y[row] = from_float<T>(found);
      continue;
    }
    float r = 1.0f / sum, log_of_sum = logf(sum) - left;  // the latter relative to the maximum
    T* to = y + row * n;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      int i = (s * lanes + lane) * WIDTH;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        float& v = values[s * WIDTH + j];
        v = mode == SOFTMAX ? product_or_zero(v, r) : (v - maximum) - log_of_sum;
      }
      if (!live || i >= n) continue;
      if constexpr (WIDTH == 1)
        __stcs(to + i, from_float<T>(values[s]));
      else
        __stcs(reinterpret_cast<uint4*>(to + i), pack<T>(values + s * WIDTH));
    }
  }
}

// Block `blockIdx.x` has row `blockIdx.x`; COPY keeps the row in (n + WIDTH) elements of dynamic shared memory.
template <typename T, bool ONLINE, bool COPY>
DEVICE void row_by_block(const T* x, T* y, int n, int mode) {
  extern __shared__ uint4 memory[];
  const T* row = x + (long long)blockIdx.x * n;
  T* to = mode == LOG_SUM_EXP ? nullptr : y + (long long)blockIdx.x * n;
  Cut c = cut<T>(row, to ? to : row, 0, n);
  constexpr int WIDTH = Elements<T>::WIDTH;
  T* copy = reinterpret_cast<T*>(memory) + (WIDTH - c.head % WIDTH) % WIDTH;  // vectors are aligned there too
  Partial p = pass_1<T, ONLINE, COPY>(row, c, copy);
  if (mode == LOG_SUM_EXP)
    store_log_sum_exp<T>(y + blockIdx.x, p);
  else if constexpr (COPY)
    pass_2<T, KEPT, false>(copy, to, c, p, mode);
  else
    pass_2<T, LAST, true>(row, to, c, p, mode);
}

// Chunk c of a row begins at n * c / chunks, moved down to the start of a vector.
template <typename T> DEVICE int chunk_begin(const T* row, int n, int chunks, int c) {
  int begin = int((long long)n * c / chunks);
  if (c == 0 || c == chunks) return begin;
  return max(0, begin - past_boundary(row, begin, sizeof(T)));
}

// What a block does of a long row: chunk c of row `row`, which begins at `offset`.
struct Chunk {
  long long row, offset;
  int begin, end;
};

template <typename T> DEVICE Chunk chunk_of(const T* x, int block, int n, int chunks) {
  int c = block % chunks;
  long long row = block / chunks;
  const T* start = x + row * n;
  return {row, row * n, chunk_begin(start, n, chunks, c), chunk_begin(start, n, chunks, c + 1)};
}

// Pass 1 of all algorithms: a Partial from each block.
template <typename T, typename Sum> DEVICE void partials(const T* x, Partial* parts, int n, int chunks) {
  Chunk k = chunk_of(x, blockIdx.x, n, chunks);
  const T* row = x + k.offset;
  Cut c = cut<T>(row, row, k.begin, k.end);
  Partial p;
  if constexpr (std::is_same_v<Sum, Maximum<T>>)
    p = sum_over<T, Sum, false>(row, c, nullptr);
  else
    p = pass_1<T, std::is_same_v<Sum, Online<T>>, false>(row, c, nullptr);
  if (threadIdx.x == 0) parts[blockIdx.x] = p;
}

__device__ inline Partial merged(const Partial* parts, int chunks) {
  Partial p = Online<float>::nothing();
  for (int c = threadIdx.x; c < chunks; c += blockDim.x) p = merge(p, parts[c]);
  return over_block(p, Online<float>::nothing());
}

// Pass 2 of three: the sum of the terms relative to the row's maximum, which are kept in y where STORE says so.
template <typename T, bool STORE>
DEVICE void terms(const T* x, T* y, const Partial* maxima, Partial* parts, int n, int chunks) {
  constexpr int WIDTH = Elements<T>::WIDTH;
  Chunk k = chunk_of(x, blockIdx.x, n, chunks);
  const T* row = x + k.offset;
  T* to = y + k.offset;
  Cut c = cut<T>(row, STORE ? to : row, k.begin, k.end);
  Terms<T> sum{merged(maxima + k.row * chunks, chunks).maximum};
  walk<T, KEPT, false>(
      row, c,
      [&](int i, T element) {
        float term = sum.add(to_float(element));
        if constexpr (STORE) to[i] = from_float<T>(term);
      },
      [&](int i, uint4 bits) {
        float values[WIDTH];
        unpack<T>(bits, values);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) values[j] = sum.add(values[j]);
        if constexpr (STORE) *reinterpret_cast<uint4*>(to + i) = pack<T>(values);
      },
      [&] { fold(sum); });
  Partial nothing = {0.0, -infinity(), sum.maximum};
  Partial p = with_infinity<T>(over_block(sum.result(), nothing), row, c);
  if (threadIdx.x == 0) parts[blockIdx.x] = p;
}

// The last pass but for reload. Backwards, since L2 holds what was read last.
template <typename T> DEVICE void finish(const T* x, T* y, const Partial* parts, int n, int chunks, int mode) {
  Chunk k = chunk_of(x, gridDim.x - 1 - blockIdx.x, n, chunks);
  Partial p = merged(parts + k.row * chunks, chunks);
  Cut c = cut<T>(x + k.offset, y + k.offset, k.begin, k.end);
  pass_2<T, LAST, true>(x + k.offset, y + k.offset, c, p, mode);
}

// Pass 3 of three, reload: y /= sum in place.
template <typename T> DEVICE void scale(T* y, const Partial* parts, int n, int chunks) {
  Chunk k = chunk_of(y, gridDim.x - 1 - blockIdx.x, n, chunks);
  Partial p = merged(parts + k.row * chunks, chunks);
  float r = p.maximum == infinity() ? not_a_number() : float(1.0 / p.sum);
  T* row = y + k.offset;
  map_over<T, LAST, true>(row, row, cut<T>(row, row, k.begin, k.end), [&](float v) { return product_or_zero(v, r); });
}

}  // namespace

#define ROWS_WARP(T, NAME, WIDTH, STEPS)                                                                  \
  extern "C" __global__ void __launch_bounds__(128, STEPS * WIDTH > 16 ? 4 : 8)                            \
      NAME(const T* x, T* y, long long rows, int n, int lanes, int mode) {                                 \
    rows_warp<T, WIDTH, STEPS>(x, y, rows, n, lanes, mode);                                               \
  }

#define ROW_BY_BLOCK(T, NAME, ONLINE, COPY)                                                               \
  extern "C" __global__ void __launch_bounds__(1024) NAME(const T* x, T* y, int n, int mode) {            \
    row_by_block<T, ONLINE, COPY>(x, y, n, mode);                                                         \
  }

#define BY_CHUNKS extern "C" __global__ void __launch_bounds__(256, 4)

#define KERNELS(T, SUFFIX)                                                                                     \
  ROWS_WARP(T, rows_warp_scalar1_##SUFFIX, 1, 1)                                                               \
  ROWS_WARP(T, rows_warp_scalar4_##SUFFIX, 1, 4)                                                               \
  ROWS_WARP(T, rows_warp_scalar16_##SUFFIX, 1, 16)                                                             \
  ROWS_WARP(T, rows_warp_scalar32_##SUFFIX, 1, 32)                                                             \
  ROWS_WARP(T, rows_warp_vector1_##SUFFIX, Elements<T>::WIDTH, 1)                                              \
  ROWS_WARP(T, rows_warp_vector2_##SUFFIX, Elements<T>::WIDTH, 2)                                              \
  ROWS_WARP(T, rows_warp_vector4_##SUFFIX, Elements<T>::WIDTH, 4)                                              \
  ROW_BY_BLOCK(T, rows_shared_##SUFFIX, false, true)                                                           \
  ROW_BY_BLOCK(T, rows_twice_two_pass_##SUFFIX, false, false)                                                  \
  ROW_BY_BLOCK(T, rows_twice_online_##SUFFIX, true, false)                                                     \
  BY_CHUNKS partials_two_pass_##SUFFIX(const T* x, Partial* parts, int n, int chunks) {                        \
    partials<T, Extended<T>>(x, parts, n, chunks);                                                             \
  }                                                                                                            \
  BY_CHUNKS partials_online_##SUFFIX(const T* x, Partial* parts, int n, int chunks) {                          \
    partials<T, Online<T>>(x, parts, n, chunks);                                                               \
  }                                                                                                            \
  BY_CHUNKS maxima_##SUFFIX(const T* x, Partial* parts, int n, int chunks) {                                   \
    partials<T, Maximum<T>>(x, parts, n, chunks);                                                              \
  }                                                                                                            \
  BY_CHUNKS sum_exp_##SUFFIX(const T* x, const Partial* maxima, Partial* parts, int n, int chunks) {           \
    terms<T, false>(x, nullptr, maxima, parts, n, chunks);                                                     \
  }                                                                                                            \
  BY_CHUNKS sum_store_exp_##SUFFIX(const T* x, T* y, const Partial* maxima, Partial* parts, int n, int chunks) { \
    terms<T, true>(x, y, maxima, parts, n, chunks);                                                            \
  }                                                                                                            \
  BY_CHUNKS finish_##SUFFIX(const T* x, T* y, const Partial* parts, int n, int chunks, int mode) {             \
    finish<T>(x, y, parts, n, chunks, mode);                                                                   \
  }                                                                                                            \
  BY_CHUNKS scale_##SUFFIX(T* y, const Partial* parts, int n, int chunks) { scale<T>(y, parts, n, chunks); }   \
  BY_CHUNKS log_sum_exp_##SUFFIX(T* y, const Partial* parts, int chunks) {                                     \
    Partial p = merged(parts + (long long)blockIdx.x * chunks, chunks);                                        \
    store_log_sum_exp<T>(y + blockIdx.x, p);                                                                   \
  }

KERNELS(float, f32)
ROWS_WARP(float, rows_warp_vector8_f32, 4, 8)
KERNELS(__half, f16)
KERNELS(__nv_bfloat16, bf16)
