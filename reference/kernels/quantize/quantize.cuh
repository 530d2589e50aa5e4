// What the kernels of quantize.cu share: the search for the nearest code, memory, and what happens to one entry.
//
// Products, sums, quotients and roots are rounded one by one (__fmul_rn and the like are never contracted), so codes
// and scales equal the other backends' bit for bit.

#pragma once

#include <cstdint>

namespace {

using Index = long long;

constexpr int MIDPOINTS = 256, HEADER = 512, BINS = 520;  // the layout of gpu_book.py
constexpr int INFINITE = 0x7f800000;

// --- the nearest code

// One state: its codes, scales, and its map in global and in shared memory.
struct State {
    uint8_t* codes;
    float* absmax;
    const uint4* source;
    int quads;
    const uint32_t* words;

    __device__ float decode(unsigned code, float scale) const {
        return __fmul_rn(__uint_as_float(words[code]), scale);
    }
};

// A block's scale. Within the range of `plain` a reciprocal and two fused operations give the IEEE quotient: that is so
// for all 24-bit numbers, and tested. Only tiny quotients may be off by a bit, and those lie in the centre, where all
// values of one sign have the same code. (The sign itself differs at -absmax * 2^-150 alone, halfway from 0 to the
// least float: keep_sign may keep it where IEEE division gives 0.)
struct Scale {
    float largest, reciprocal;
    bool usable, plain;

    __device__ static Scale of(int bits) {
        const float largest = __int_as_float(bits);
        return {largest, __frcp_rn(largest), 0 < bits && bits < INFINITE,
                (127 - 60) << 23 <= bits && bits < (127 + 100) << 23};
    }

    __device__ float quotient(float x) const {
        const float q = __fmul_rn(x, reciprocal);
        return __fmaf_rn(__fmaf_rn(-largest, q, x), reciprocal, q);
    }
};

struct Book {
    const uint32_t* words;
    int below, above, offset;
    bool binned;
    unsigned zero;

    __device__ static Book open(const uint32_t* words) {
        return {words, int(words[HEADER]), int(words[HEADER + 1]), int(words[HEADER + 2] << 16),
                words[HEADER + 3] != 0, words[HEADER + 4]};
    }

    // The code, in bits 16 to 23.
    __device__ unsigned by_bin(float quotient) const {
        const int bits = __float_as_int(__fadd_rn(quotient, 0.0f));  // -0 becomes +0
        const int sign = bits >> 31;
        const int key = bits ^ (sign & 0x7fffffff);
        const int place = key - min(max(key, below), above) + sign + offset;
        return words[BINS + (place >> 16)] + (place & 0xffff);
    }

    // The codes of N entries of one block, in bits 16 to 23 each. Entries wait for memory together, not in turn.
    template <int N>
    __device__ void search(const float (&x)[N], const Scale& scale, unsigned (&found)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) found[i] = scale.usable ? 0 : zero << 16;
        if (!scale.usable) return;
        if (binned && scale.plain) {
#pragma unroll
            for (int i = 0; i < N; ++i) found[i] = by_bin(scale.quotient(x[i]));
            return;
        }
        float quotient[N];
#pragma unroll
        for (int i = 0; i < N; ++i) quotient[i] = __fdiv_rn(x[i], scale.largest);
#pragma unroll 1
        for (unsigned step = 128; step > 0; step >>= 1) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const unsigned next = found[i] + (step << 16);
                found[i] = quotient[i] > __uint_as_float(words[MIDPOINTS + (next >> 16) - 1]) ? next : found[i];
            }
        }
    }
};

// --- memory

// Four neighbours of which `live` exist; the others read as 0.
__device__ void load(float (&value)[4], const float* source, int live) {
    if (live == 4) {
        const float4 whole = *reinterpret_cast<const float4*>(source);
        value[0] = whole.x, value[1] = whole.y, value[2] = whole.z, value[3] = whole.w;
    } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) value[c] = c < live ? source[c] : 0.0f;
    }
}

__device__ void store(float* target, const float (&value)[4], int live) {
    if (live == 4) {
        *reinterpret_cast<float4*>(target) = make_float4(value[0], value[1], value[2], value[3]);
    } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) if (c < live) target[c] = value[c];
    }
}

__device__ unsigned load(const uint8_t* source, int live) {
    if (live == 4) return *reinterpret_cast<const unsigned*>(source);
    unsigned word = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) if (c < live) word |= unsigned(source[c]) << 8 * c;
    return word;
}

__device__ void store(uint8_t* target, unsigned word, int live) {
    if (live == 4) {
        *reinterpret_cast<unsigned*>(target) = word;
    } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) if (c < live) target[c] = word >> 8 * c;
    }
}

// Magnitudes order as their bits do, and a NaN comes out on top.
__device__ int magnitude(float x) { return __float_as_int(x) & 0x7fffffff; }

// --- what is computed for one entry: p and the states in place; HELD says that p and old states exist.
// A thread of a tile holds QUADS runs of four entries: as many as its registers allow.

struct Plain {
    static constexpr int STATES = 1, QUADS = 4;
    static constexpr bool HELD = false;
    float* p;
    const float* g;
    __device__ void step(float&, float x, float (&state)[1]) const { state[0] = x; }
};

struct Adam {
    static constexpr int STATES = 2, QUADS = 2;
    static constexpr bool HELD = true;
    float* p;
    const float* g;
    float beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat;
    __device__ void step(float& x, float d, float (&state)[2]) const {
        const float m = __fadd_rn(__fmul_rn(state[0], beta1), __fmul_rn(d, one_minus_beta1));
        const float v = __fadd_rn(__fmul_rn(state[1], beta2), __fmul_rn(__fmul_rn(d, d), one_minus_beta2));
        const float update = __fdiv_rn(m, __fadd_rn(__fsqrt_rn(v), eps_hat));
        x = __fsub_rn(__fmul_rn(x, decay), __fmul_rn(update, step_size));
        state[0] = m, state[1] = v;
    }
};

struct Momentum {
    static constexpr int STATES = 1, QUADS = 2;
    static constexpr bool HELD = true;
    float* p;
    const float* g;
    float lr, momentum, weight_decay;
    __device__ void step(float& x, float d, float (&state)[1]) const {
        const float m = __fadd_rn(__fmul_rn(state[0], momentum), __fadd_rn(d, __fmul_rn(x, weight_decay)));
        x = __fsub_rn(x, __fmul_rn(m, lr));
        state[0] = m;
    }
};

struct Lion {
    static constexpr int STATES = 1, QUADS = 2;
    static constexpr bool HELD = true;
    float* p;
    const float* g;
    float beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr;
    __device__ void step(float& x, float d, float (&state)[1]) const {
        const float c = __fadd_rn(__fmul_rn(state[0], beta1), __fmul_rn(d, one_minus_beta1));
        const float sign = c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : c == 0.0f ? 0.0f : c;
        x = __fsub_rn(__fmul_rn(x, decay), __fmul_rn(sign, lr));
        state[0] = __fadd_rn(__fmul_rn(state[0], beta2), __fmul_rn(d, one_minus_beta2));
    }
};

}  // namespace
