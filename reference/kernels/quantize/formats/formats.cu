// NF4 and uniform codes, by the rules of nf4.py and uniform.py. A thread holds 8 neighbouring entries in registers, and
// the threads of a block or group of 32, 64, ... 4096 entries find its range together: one read, one write.
//
// Products and quotients are rounded one by one (__fmul_rn and the like are never contracted), so codes and scales equal
// the other backends' bit for bit.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace {

using Index = long long;

constexpr int EACH = 8;       // entries of a thread
constexpr int THREADS = 512;  // of a CUDA block, which thus holds whole blocks of up to 4096 entries
constexpr int WARPS = THREADS / 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr int MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;
constexpr float NF4_SMALLEST = 1e-38f, SMALLEST_SCALE = 1.17549435e-38f;
constexpr unsigned NF4_ZERO = 7;

// --- memory

__device__ float widen(float x) { return x; }
__device__ float widen(__half x) { return __half2float(x); }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void narrow(float& place, float x) { place = x; }
__device__ void narrow(__half& place, float x) { place = __float2half_rn(x); }
__device__ void narrow(__nv_bfloat16& place, float x) { place = __float2bfloat16_rn(x); }

template <typename T> struct alignas(16) Eight { T entry[EACH]; };

// Eight neighbours of which `live` exist; the others read as 0. `aligned` memory begins at a multiple of 16 bytes.
template <typename T>
__device__ void load(float (&value)[EACH], const T* source, Index live, bool aligned) {
    if (live >= EACH && aligned) {
        const Eight<T> whole = *reinterpret_cast<const Eight<T>*>(source);
#pragma unroll
        for (int i = 0; i < EACH; ++i) value[i] = widen(whole.entry[i]);
    } else {
#pragma unroll
        for (int i = 0; i < EACH; ++i) value[i] = i < live ? widen(source[i]) : 0.0f;
    }
}

template <typename T>
__device__ void store(T* target, const float (&value)[EACH], Index live, bool aligned) {
    if (live >= EACH && aligned) {
        Eight<T> whole;
#pragma unroll
        for (int i = 0; i < EACH; ++i) narrow(whole.entry[i], value[i]);
        *reinterpret_cast<Eight<T>*>(target) = whole;
    } else {
#pragma unroll
        for (int i = 0; i < EACH; ++i) if (i < live) narrow(target[i], value[i]);
    }
}

// `bits` bits of each of eight codes, the first on top, in the bytes that hold `live` entries; `spare` fills the last.
__device__ void store_codes(uint8_t* target, const unsigned (&code)[EACH], int bits, Index live, unsigned spare,
                            bool aligned) {
    if (bits == 8) {
#pragma unroll
        for (int i = 0; i < EACH; i += 4) {
            if (live >= i + 4 && aligned) {
                *reinterpret_cast<unsigned*>(target + i) =
                    code[i] | code[i + 1] << 8 | code[i + 2] << 16 | code[i + 3] << 24;
            } else {
#pragma unroll
                for (int k = i; k < i + 4; ++k) if (k < live) target[k] = uint8_t(code[k]);
            }
        }
        return;
    }
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) word = word << bits | (i < live ? code[i] : spare);
    const int held = 8 / bits;
    if (bits == 4 && live >= EACH && aligned) {
        *reinterpret_cast<unsigned*>(target) = __byte_perm(word, 0, 0x0123);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i * held < min(live, Index(EACH))) target[i] = uint8_t(word >> (EACH - held * (i + 1)) * bits);
    }
}

// Eight codes of `bits` bits as one word, the first on top; those beyond `live` entries are 0.
__device__ uint64_t load_codes(const uint8_t* source, int bits, Index live, bool aligned) {
    if (live >= EACH && aligned && bits >= 4) {
        const unsigned* words = reinterpret_cast<const unsigned*>(source);
        const uint64_t first = uint64_t(__byte_perm(words[0], 0, 0x0123)) << 32;
        return bits == 4 ? first : first | __byte_perm(words[1], 0, 0x0123);
    }
    const int bytes = int((min(live, Index(EACH)) * bits + 7) / 8);
    uint64_t word = 0;
    for (int i = 0; i < bytes; ++i) word |= uint64_t(source[i]) << (56 - 8 * i);
    return word;
}

// --- the range of a block

// The largest of `value` over 2^log_lanes threads; every thread of the CUDA block takes part.
__device__ int largest_of(int value, int log_lanes) {
    const int within = min(log_lanes, 5);
    for (int apart = 1 << within >> 1; apart > 0; apart >>= 1) value = max(value, __shfl_xor_sync(ALL, value, apart));
    if (log_lanes <= 5) return value;
    __shared__ int partial[WARPS];
    __syncthreads();
    const int warp = threadIdx.x >> 5, warps = 1 << (log_lanes - 5);
    if ((threadIdx.x & 31) == 0) partial[warp] = value;
    __syncthreads();
    for (int i = 0; i < warps; ++i) value = max(value, partial[(warp & -warps) + i]);
    return value;
}

// An integer that orders as the float does, NaN beyond the infinity of its sign.
__device__ int key_of(float x) {
    const int bits = __float_as_int(x);
    return bits ^ (bits >> 31 & MAGNITUDE);
}
__device__ float of_key(int key) { return __int_as_float(key ^ (key >> 31 & MAGNITUDE)); }

// Within low..high; NaN gives `low`.
__device__ float clip(float x, float low, float high) {
    x = x > low ? x : low;
    return x < high ? x : high;
}

struct Place {
    Index entry, live;
    __device__ static Place here(Index n) {
        const Index entry = (Index(blockIdx.x) * THREADS + threadIdx.x) * EACH;
        return {entry, n - entry};
    }
};

// --- NF4

template <typename T>
__device__ void nf4_quantize(const T* x, const float* midpoints, uint8_t* codes, float* scale, Index n, int log_block,
                             bool aligned) {
    __shared__ float middle[16];
    if (threadIdx.x < 15) middle[threadIdx.x] = midpoints[threadIdx.x];
    __syncthreads();
    const Place place = Place::here(n);
    float value[EACH];
    load(value, x + place.entry, place.live, aligned);
    int bits = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) bits = max(bits, __float_as_int(value[i]) & MAGNITUDE);
    bits = largest_of(bits, log_block - 3);
    if (place.live <= 0) return;
    if ((place.entry & ((Index(1) << log_block) - 1)) == 0) scale[place.entry >> log_block] = __int_as_float(bits);
    const bool finite = bits < INFINITE;
    const float inverse = __fdiv_rn(1.0f, fmaxf(__int_as_float(finite ? bits : 0), NF4_SMALLEST));
    unsigned code[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const float scaled = __fmul_rn(value[i], inverse);
        unsigned found = 0;
#pragma unroll
        for (unsigned step = 8; step > 0; step >>= 1) found += scaled > middle[found + step - 1] ? step : 0;
        code[i] = finite ? found : NF4_ZERO;
    }
    store_codes(codes + place.entry / 2, code, 4, place.live, NF4_ZERO, aligned);
}

template <typename T>
__device__ void nf4_dequantize(const uint8_t* codes, const float* scale, const float* values, T* out, Index n,
                               int log_block, bool aligned) {
    __shared__ float value_of[16];
    if (threadIdx.x < 16) value_of[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    const Place place = Place::here(n);
    if (place.live <= 0) return;
    const uint64_t word = load_codes(codes + place.entry / 2, 4, place.live, aligned);
    const float s = scale[place.entry >> log_block];
    float value[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) value[i] = __fmul_rn(value_of[word >> (60 - 4 * i) & 15], s);
    store(out + place.entry, value, place.live, aligned);
}

// --- uniform

template <typename T>
__device__ void groups_quantize(const T* x, uint8_t* codes, float* scale, uint8_t* zeros, Index n, int log_group,
                                int bits, float low, float high, bool aligned) {
    const Place place = Place::here(n);
    float value[EACH];
    load(value, x + place.entry, place.live, aligned);
    int low_key = MAGNITUDE, high_key = ~MAGNITUDE;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int key = key_of(value[i]);
        low_key = min(low_key, key), high_key = max(high_key, key);
    }
    high_key = largest_of(high_key, log_group - 3);
    low_key = ~largest_of(~low_key, log_group - 3);
    if (place.live <= 0) return;
    const bool finite = low_key > key_of(__int_as_float(~MAGNITUDE | INFINITE)) && high_key < INFINITE;
    const float smallest = finite ? fminf(of_key(min(low_key, 0)), 0.0f) : 0.0f;
    const float largest = finite ? of_key(max(high_key, 0)) : 0.0f;
    const bool symmetric = zeros == nullptr;
    const float raw = symmetric ? __fdiv_rn(fmaxf(largest, -smallest), high)
                                : __fsub_rn(__fdiv_rn(largest, high), __fdiv_rn(smallest, high));
    const float s = fmaxf(raw, SMALLEST_SCALE), inverse = __fdiv_rn(1.0f, s);
    const float zero = symmetric ? 0.0f : clip(rintf(__fmul_rn(-smallest, inverse)), low, high);
    if ((place.entry & ((Index(1) << log_group) - 1)) == 0) {
        scale[place.entry >> log_group] = finite ? s : __int_as_float(0x7fc00000);
        if (!symmetric) zeros[place.entry >> log_group] = uint8_t(finite ? zero : 0.0f);
    }
    const int held = bits == 2 || bits == 4 ? bits : 8;
    const unsigned mask = (1u << held) - 1;
    unsigned code[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const float whole = finite ? __fadd_rn(rintf(__fmul_rn(value[i], inverse)), zero) : low;
        code[i] = unsigned(int(clip(whole, low, high))) & mask;
    }
    store_codes(codes + place.entry * held / 8, code, held, place.live, 0, aligned);
}

struct Layout {
    Index length, group, runs_per_row, period;
};

// The scale of an entry, in integers no wider than the tensor needs: 64-bit divisions are slow.
template <typename I>
__device__ I scale_of(I entry, const Layout& layout) {
    const I row = entry / I(layout.length);
    return (row * I(layout.runs_per_row) + (entry - row * I(layout.length)) / I(layout.group)) % I(layout.period);
}

template <typename I, typename T>
__device__ void uniform_values(const Place& place, const uint8_t* codes, const float* scale, const uint8_t* zeros, T* out,
                               const Layout& layout, int held, bool aligned) {
    const bool together = layout.group % EACH == 0 && layout.length % EACH == 0;
    const I first = together ? scale_of<I>(I(place.entry), layout) : I(0);
    const uint64_t word = load_codes(codes + place.entry * held / 8, held, place.live, aligned);
    float value[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        value[i] = 0.0f;
        if (i >= place.live) continue;
        const I index = together ? first : scale_of<I>(I(place.entry + i), layout);
        const int code = int(word >> (64 - held * (i + 1))) & ((1 << held) - 1);
        // Two's complement is widened by moving it to the top of a word and back.
        const int whole = zeros == nullptr ? int(unsigned(code) << (32 - held)) >> (32 - held) : code - zeros[index];
        value[i] = __fmul_rn(float(whole), scale[index]);
    }
    store(out + place.entry, value, place.live, aligned);
}

template <typename T>
__device__ void uniform_dequantize(const uint8_t* codes, const float* scale, const uint8_t* zeros, T* out, Index n,
                                   const Layout& layout, int held, bool aligned) {
    const Place place = Place::here(n);
    if (place.live <= 0) return;
    if (n <= 0x7fffffff) {
        uniform_values<unsigned>(place, codes, scale, zeros, out, layout, held, aligned);
    } else {
        uniform_values<Index>(place, codes, scale, zeros, out, layout, held, aligned);
    }
}

}  // namespace

#define KERNELS(SUFFIX, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(512) nf4_quantize_##SUFFIX(                                           \
        const T* x, const float* midpoints, uint8_t* codes, float* scale, Index n, int log_block, int aligned) {       \
        nf4_quantize(x, midpoints, codes, scale, n, log_block, aligned != 0);                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512) nf4_dequantize_##SUFFIX(                                         \
        const uint8_t* codes, const float* scale, const float* values, T* out, Index n, int log_block, int aligned) {  \
        nf4_dequantize(codes, scale, values, out, n, log_block, aligned != 0);                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512) groups_quantize_##SUFFIX(                                        \
        const T* x, uint8_t* codes, float* scale, uint8_t* zeros, Index n, int log_group, int bits, int symmetric,     \
        float low, float high, int aligned) {                                                                          \
        groups_quantize(x, codes, scale, symmetric ? nullptr : zeros, n, log_group, bits, low, high, aligned != 0);    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512) uniform_dequantize_##SUFFIX(                                     \
        const uint8_t* codes, const float* scale, const uint8_t* zeros, T* out, Index n, Index length, Index group,    \
        Index runs_per_row, Index period, int held, int symmetric, int aligned) {                                      \
        uniform_dequantize(codes, scale, symmetric ? nullptr : zeros, out, n,                                          \
                           Layout{length, group, runs_per_row, period}, held, aligned != 0);                           \
    }

KERNELS(f32, float)
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)
