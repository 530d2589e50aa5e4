// What surrounds the matrix products of a low-rank step, for float, sm_80 and newer:
//   adam_moments             Adam's moments of R and its direction, one pass
//   polynomial               S <- a I + b A + c S, the only elementwise pass of a Newton-Schulz step
//   column_sums_*, finish_*  norms of the columns, summed in double; S is read once, by rows
//   gather_columns           the kept columns
//   random_*                 a block of a random matrix from Philox4x32-10, which is never stored whole
// The equations and constants are those of numba_kernels.py.

#define DEVICE __device__ __forceinline__

namespace {

constexpr int COLUMN_THREADS = 32, ROW_THREADS = 8;  // as in cuda_gpu.py

constexpr unsigned M0 = 0xD2511F53u, M1 = 0xCD9E8D57u, W0 = 0x9E3779B9u, W1 = 0xBB67AE85u;
constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
constexpr float QUARTER_TURN = 1.5707963267948966f / 4194304.0f, ONE_24TH = 0x1p-24f;

struct Betas { float b1, c1, b2, c2, eps; };

DEVICE float moments(float g, float& m, float& v, Betas s) {
  m = s.b1 * m + s.c1 * g;
  v = s.b2 * v + s.c2 * (g * g);
  return __fdiv_rn(m, __fsqrt_rn(v) + s.eps);
}

DEVICE uint4 philox(unsigned row, unsigned quad, unsigned step, unsigned k0, unsigned k1) {
  uint4 c = make_uint4(row, quad, step, 0u);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = static_cast<unsigned long long>(M0) * c.x;
    const unsigned long long p1 = static_cast<unsigned long long>(M1) * c.z;
    c = make_uint4(static_cast<unsigned>(p1 >> 32) ^ c.y ^ k0, static_cast<unsigned>(p1),
                   static_cast<unsigned>(p0 >> 32) ^ c.w ^ k1, static_cast<unsigned>(p0));
    k0 += W0;
    k1 += W1;
  }
  return c;
}

DEVICE float natural_log(float x) {  // of a positive normal x
  const int bits = __float_as_int(x), e = (bits - 0x3F3504F3) >> 23;
  const float m = __int_as_float(bits - (e << 23)) - 1.0f, z = m * m, exponent = static_cast<float>(e);
  float y = fmaf(m, 7.0376836292e-2f, -1.1514610310e-1f);
  y = fmaf(y, m, 1.1676998740e-1f);
  y = fmaf(y, m, -1.2420140846e-1f);
  y = fmaf(y, m, 1.4249322787e-1f);
  y = fmaf(y, m, -1.6668057665e-1f);
  y = fmaf(y, m, 2.0000714765e-1f);
  y = fmaf(y, m, -2.4999993993e-1f);
  y = fmaf(y, m, 3.3333331174e-1f);
  y = y * m * z + exponent * LN2_LOW - 0.5f * z;
  return (m + y) + exponent * LN2_HIGH;
}

DEVICE float2 normals(unsigned x, unsigned y) {  // Box and Muller, from the upper 24 bits of each word
  const float radius = __fsqrt_rn(-2.0f * natural_log(static_cast<float>((x >> 8) + 1u) * ONE_24TH));
  const int angle = static_cast<int>(y >> 8), quarter = (angle + 2097152) >> 22;
  const float a = static_cast<float>(angle - (quarter << 22)) * QUARTER_TURN, z = a * a;
  const float s = fmaf(fmaf(z, -1.9515295891e-4f, 8.3321608736e-3f), z, -1.6666654611e-1f) * z * a + a;
  const float c =
      fmaf(fmaf(z, 2.443315711809948e-5f, -1.388731625493765e-3f), z, 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const float cosine = quarter & 1 ? s : c, sine = quarter & 1 ? c : s;
  return make_float2(radius * ((quarter + 1) & 2 ? -cosine : cosine), radius * (quarter & 2 ? -sine : sine));
}

struct Gaussian {
  static DEVICE float4 entries(uint4 x, float scale) {
    const float2 one = normals(x.x, x.y), two = normals(x.z, x.w);
    return make_float4(scale * one.x, scale * one.y, scale * two.x, scale * two.y);
  }
};

struct Rademacher {
  static DEVICE float entry(unsigned word, float scale) { return word >> 31 ? -scale : scale; }
  static DEVICE float4 entries(uint4 x, float scale) {
    return make_float4(entry(x.x, scale), entry(x.y, scale), entry(x.z, scale), entry(x.w, scale));
  }
};

struct Sparse {  // not 0 with probability 1/3
  static DEVICE float entry(unsigned word, float scale) {
    return word < 715827883u ? scale : word >= 3579139413u ? -scale : 0.0f;
  }
  static DEVICE float4 entries(uint4 x, float scale) {
    return make_float4(entry(x.x, scale), entry(x.y, scale), entry(x.z, scale), entry(x.w, scale));
  }
};

template <typename Kind>
DEVICE void fill(float* out, long long rows, int n, unsigned row, unsigned quad, unsigned step, unsigned k0, unsigned k1,
                 float scale) {
  const int quads = (n + 3) / 4;
  const long long total = rows * quads, stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; at < total; at += stride) {
    const unsigned i = static_cast<unsigned>(at / quads), j = static_cast<unsigned>(at % quads);
    const float4 y = Kind::entries(philox(row + i, quad + j, step, k0, k1), scale);
    float* to = out + static_cast<long long>(i) * n + 4 * j;
    if (n % 4 == 0) {
      *reinterpret_cast<float4*>(to) = y;
      continue;
    }
    to[0] = y.x;
    if (4 * j + 1 < n) to[1] = y.y;
    if (4 * j + 2 < n) to[2] = y.z;
    if (4 * j + 3 < n) to[3] = y.w;
  }
}

template <bool SQUARES>
DEVICE void column_sums(const float* S, double* sums, long long rows, int n, long long rows_a_part) {
  __shared__ double shared[ROW_THREADS][COLUMN_THREADS];
  const int column = blockIdx.x * COLUMN_THREADS + threadIdx.x;
  const long long first = blockIdx.y * rows_a_part, last = min(first + rows_a_part, rows);
  double total = 0.0;
  if (column < n) {
#pragma unroll 4
    for (long long row = first + threadIdx.y; row < last; row += ROW_THREADS) {
      const double x = S[row * n + column];
      total += SQUARES ? x * x : fabs(x);
    }
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || column >= n) return;
#pragma unroll
  for (int i = 1; i < ROW_THREADS; ++i) total += shared[i][threadIdx.x];
  sums[static_cast<long long>(blockIdx.y) * n + column] = total;
}

template <bool SQUARES>
DEVICE void finish_norms(const double* sums, float* out, int parts, int n) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= n) return;
  double total = 0.0;
  for (int part = 0; part < parts; ++part) total += sums[static_cast<long long>(part) * n + column];
  out[column] = static_cast<float>(SQUARES ? sqrt(total) : total);
}

}  // namespace

extern "C" {

// N may be R. ``vectors`` of four are 16-byte aligned; what is left of ``n`` entries is done one by one.
__global__ void __launch_bounds__(256) adam_moments(const float* R, float* M, float* V, float* N, long long n,
                                                    long long vectors, float b1, float c1, float b2, float c2,
                                                    float eps) {
  const Betas s{b1, c1, b2, c2, eps};
  const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = first; i < vectors; i += stride) {
    const float4 g = reinterpret_cast<const float4*>(R)[i];
    float4 m = reinterpret_cast<float4*>(M)[i], v = reinterpret_cast<float4*>(V)[i], d;
    d.x = moments(g.x, m.x, v.x, s);
    d.y = moments(g.y, m.y, v.y, s);
    d.z = moments(g.z, m.z, v.z, s);
    d.w = moments(g.w, m.w, v.w, s);
    reinterpret_cast<float4*>(M)[i] = m;
    reinterpret_cast<float4*>(V)[i] = v;
    reinterpret_cast<float4*>(N)[i] = d;
  }
  for (long long i = 4 * vectors + first; i < n; i += stride) {
    float m = M[i], v = V[i];
    N[i] = moments(R[i], m, v, s);
    M[i] = m;
    V[i] = v;
  }
}

__global__ void __launch_bounds__(256) polynomial(const float* A, float* S, int n, float a, float b, float c) {
  const long long row = blockIdx.x;
  for (int column = threadIdx.x; column < n; column += blockDim.x) {
    const long long at = row * n + column;
    const float y = b * A[at] + c * S[at];
    S[at] = column == row ? y + a : y;
  }
}

__global__ void __launch_bounds__(256) column_sums_l1(const float* S, double* sums, long long rows, int n,
                                                      long long rows_a_part) {
  column_sums<false>(S, sums, rows, n, rows_a_part);
}

__global__ void __launch_bounds__(256) column_sums_l2(const float* S, double* sums, long long rows, int n,
                                                      long long rows_a_part) {
  column_sums<true>(S, sums, rows, n, rows_a_part);
}

__global__ void __launch_bounds__(256) finish_norms_l1(const double* sums, float* out, int parts, int n) {
  finish_norms<false>(sums, out, parts, n);
}

__global__ void __launch_bounds__(256) finish_norms_l2(const double* sums, float* out, int parts, int n) {
  finish_norms<true>(sums, out, parts, n);
}

__global__ void __launch_bounds__(256) gather_columns(const float* S, const int* columns, float* out, int n, int rank) {
  const long long row = blockIdx.x;
  for (int j = threadIdx.x; j < rank; j += blockDim.x) out[row * rank + j] = S[row * n + columns[j]];
}

__global__ void __launch_bounds__(256) random_gaussian(float* out, long long rows, int n, unsigned row, unsigned quad,
                                                       unsigned step, unsigned k0, unsigned k1, float scale) {
  fill<Gaussian>(out, rows, n, row, quad, step, k0, k1, scale);
}

__global__ void __launch_bounds__(256) random_rademacher(float* out, long long rows, int n, unsigned row,
                                                         unsigned quad, unsigned step, unsigned k0, unsigned k1,
                                                         float scale) {
  fill<Rademacher>(out, rows, n, row, quad, step, k0, k1, scale);
}

__global__ void __launch_bounds__(256) random_sparse(float* out, long long rows, int n, unsigned row, unsigned quad,
                                                     unsigned step, unsigned k0, unsigned k1, float scale) {
  fill<Sparse>(out, rows, n, row, quad, step, k0, k1, scale);
}

}  // extern "C"
