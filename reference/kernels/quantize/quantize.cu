// Block-wise 8-bit quantisation and the optimizer steps on 8-bit states, by the rules of this folder's __init__.py.
//
// *_tiles: blocks of 64, 128, ... 4096 entries on aligned memory. A group of threads holds a block in registers:
// states are dequantised, updated, used for the parameters and requantised in one pass over memory.
// *_largest, then *_finish: any block on any memory. A warp takes a piece of a block; the first kernel finds each
// block's scale, the second computes again and writes.

#ifdef __CUDACC__
#include <cuda_pipeline.h>
#endif

#include "quantize.cuh"

namespace {

constexpr int TILE_THREADS = 512;
constexpr int PIECE_THREADS = 256;
constexpr int PIECE = 4096;  // entries of a block that one warp takes
constexpr unsigned ALL = 0xffffffffu;

extern __shared__ uint4 shared_words[];

// --- books in shared memory

#ifdef __CUDACC__
__device__ void copy(uint4* target, const uint4* source) { __pipeline_memcpy_async(target, source, sizeof(uint4)); }
__device__ void wait_for_copies() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
}
#else
inline void copy(uint4* target, const uint4* source) { *target = *source; }
inline void wait_for_copies() {}
#endif

// Begins to copy the states' books; arrive() waits for them.
template <int STATES>
__device__ void fetch(State (&states)[STATES]) {
    uint4* target = shared_words;
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
        for (int i = threadIdx.x; i < states[s].quads; i += blockDim.x) copy(target + i, states[s].source + i);
        states[s].words = reinterpret_cast<const uint32_t*>(target);
        target += states[s].quads;
    }
}

__device__ void arrive() {
    wait_for_copies();
    __syncthreads();
}

// The largest of `bits` over a group of 2^log_lanes threads; every thread of the CUDA block takes part.
template <int STATES>
__device__ void reduce(int (&bits)[STATES], int log_lanes, int parity) {
    __shared__ int partial[2][STATES][TILE_THREADS / 32];
    if (log_lanes < 5) {
        for (int apart = 1 << log_lanes >> 1; apart > 0; apart >>= 1) {
#pragma unroll
            for (int s = 0; s < STATES; ++s) bits[s] = max(bits[s], __shfl_xor_sync(ALL, bits[s], apart));
        }
        return;
    }
#pragma unroll
    for (int s = 0; s < STATES; ++s) bits[s] = __reduce_max_sync(ALL, bits[s]);
    if (log_lanes == 5) return;
    // Two sets of partial results, so that one barrier a tile is enough.
    const int warp = threadIdx.x >> 5, warps = 1 << (log_lanes - 5);
    const int other = (warp & -warps) | (threadIdx.x & (warps - 1));
    if ((threadIdx.x & 31) == 0) {
#pragma unroll
        for (int s = 0; s < STATES; ++s) partial[parity][s][warp] = bits[s];
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STATES; ++s) bits[s] = __reduce_max_sync(ALL, partial[parity][s][other]);
}

template <class Rule>
__device__ void run_tiles(const Rule& rule, State (&states)[Rule::STATES], Index n, int log_lanes) {
    constexpr int STATES = Rule::STATES, QUADS = Rule::QUADS, EACH = 4 * QUADS, TILE = TILE_THREADS * EACH;
    fetch(states);
    const int lane = threadIdx.x & ((1 << log_lanes) - 1), group = threadIdx.x >> log_lanes;
    const int first = (group * EACH << log_lanes) + lane * 4, apart = 4 << log_lanes;
    bool arrived = false;
    int parity = 0;
    for (Index begin = Index(blockIdx.x) * TILE; begin < n; begin += Index(gridDim.x) * TILE, parity ^= 1) {
        const int left = int(min(n - begin, Index(TILE)));
        const Index block = (begin / EACH >> log_lanes) + group;
        int live[QUADS];
        float p[QUADS][4], g[QUADS][4], fresh[STATES][EACH], scale[STATES];
        unsigned old[QUADS][STATES];
#pragma unroll
        for (int k = 0; k < QUADS; ++k) {
            const int at = first + k * apart;
            live[k] = min(max(left - at, 0), 4);
            load(g[k], rule.g + begin + at, live[k]);
            if constexpr (Rule::HELD) {
                load(p[k], rule.p + begin + at, live[k]);
#pragma unroll
                for (int s = 0; s < STATES; ++s) old[k][s] = load(states[s].codes + begin + at, live[k]);
            }
        }
        if constexpr (Rule::HELD) {
#pragma unroll
            for (int s = 0; s < STATES; ++s) scale[s] = live[0] > 0 ? states[s].absmax[block] : 0.0f;
        }
        if (!arrived) arrive();
        arrived = true;
        int bits[STATES] = {};
#pragma unroll
        for (int k = 0; k < QUADS; ++k) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                float held[STATES];
                if constexpr (Rule::HELD) {
#pragma unroll
                    for (int s = 0; s < STATES; ++s) {
                        held[s] = states[s].decode(old[k][s] >> 8 * c & 255, scale[s]);
                    }
                }
                rule.step(p[k][c], g[k][c], held);
#pragma unroll
                for (int s = 0; s < STATES; ++s) fresh[s][4 * k + c] = held[s];
            }
            if constexpr (Rule::HELD) {
                store(rule.p + begin + first + k * apart, p[k], live[k]);
                if (live[k] < 4) {
#pragma unroll
                    for (int i = 0; i < 4 * STATES; ++i) {
                        if (i % 4 >= live[k]) fresh[i / 4][4 * k + i % 4] = 0.0f;
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < STATES * EACH; ++i) {
            bits[i / EACH] = max(bits[i / EACH], magnitude(fresh[i / EACH][i % EACH]));
        }
        reduce(bits, log_lanes, parity);
#pragma unroll
        for (int s = 0; s < STATES; ++s) {
            const Scale now = Scale::of(bits[s]);
            if (lane == 0 && live[0] > 0) states[s].absmax[block] = now.largest;
            unsigned found[EACH];
            Book::open(states[s].words).search(fresh[s], now, found);
#pragma unroll
            for (int k = 0; k < QUADS; ++k) {
                const unsigned low = __byte_perm(found[4 * k], found[4 * k + 1], 0x0062);
                const unsigned high = __byte_perm(found[4 * k + 2], found[4 * k + 3], 0x0062);
                store(states[s].codes + begin + first + k * apart, __byte_perm(low, high, 0x5410), live[k]);
            }
        }
    }
}

// --- pieces

template <bool FINISH, class Rule>
__device__ void run_pieces(const Rule& rule, State (&states)[Rule::STATES], int* scales, Index n, Index block) {
    constexpr int STATES = Rule::STATES;
    fetch(states);
    arrive();
    const int lane = threadIdx.x & 31;
    const Index blocks = (n + block - 1) / block, each = (block + PIECE - 1) / PIECE;
    const Index warps = Index(gridDim.x) * (PIECE_THREADS / 32);
    for (Index piece = (Index(blockIdx.x) * PIECE_THREADS + threadIdx.x) >> 5; piece < blocks * each;
         piece += warps) {
        const Index b = piece / each, start = b * block + piece % each * PIECE;
        const Index end = min(n, min(start + PIECE, (b + 1) * block));
        float scale[STATES];
        Book books[STATES];
        Scale now[STATES];
        int bits[STATES] = {};
#pragma unroll
        for (int s = 0; s < STATES; ++s) {
            if constexpr (Rule::HELD) scale[s] = states[s].absmax[b];
            if constexpr (FINISH) {
                books[s] = Book::open(states[s].words);
                now[s] = Scale::of(scales[s * blocks + b]);
            }
        }
#pragma unroll 4
        for (Index i = start + lane; i < end; i += 32) {
            float p = 0.0f, held[STATES];
            if constexpr (Rule::HELD) {
                p = rule.p[i];
#pragma unroll
                for (int s = 0; s < STATES; ++s) held[s] = states[s].decode(states[s].codes[i], scale[s]);
            }
            rule.step(p, rule.g[i], held);
            if constexpr (FINISH && Rule::HELD) rule.p[i] = p;
#pragma unroll
            for (int s = 0; s < STATES; ++s) {
                if constexpr (FINISH) {
                    unsigned found[1];
                    books[s].search({held[s]}, now[s], found);
                    states[s].codes[i] = found[0] >> 16;
                } else {
                    bits[s] = max(bits[s], magnitude(held[s]));
                }
            }
        }
        if constexpr (!FINISH) {
#pragma unroll
            for (int s = 0; s < STATES; ++s) {
                bits[s] = __reduce_max_sync(ALL, bits[s]);
                if (lane == 0) atomicMax(scales + s * blocks + b, bits[s]);
            }
        }
    }
}

}  // namespace

// --- kernels. n and block count entries, quads the 16-byte words of a book; log_lanes is log2 of a block's threads.
// `scales` holds the new scales of all states, one state after another, and starts as zeros.

#define TILES extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
#define PIECES extern "C" __global__ void __launch_bounds__(PIECE_THREADS, 4)
#define STATE(s) uint8_t *s##_codes, float *s##_absmax, const uint4 *s##_book, int s##_quads
#define HELD(s) {s##_codes, s##_absmax, s##_book, s##_quads, nullptr}
#define MEANS float beta1, float one_minus_beta1, float beta2, float one_minus_beta2
#define ADAM MEANS, float decay, float step_size, float eps_hat
#define LION MEANS, float decay, float lr
#define MOMENTUM float lr, float momentum, float weight_decay

TILES quantize_tiles(const float* x, STATE(x), Index n, int log_lanes) {
    State states[] = {HELD(x)};
    run_tiles(Plain{nullptr, x}, states, n, log_lanes);
}

PIECES quantize_largest(const float* x, STATE(x), int* scales, Index n, Index block) {
    State states[] = {HELD(x)};
    run_pieces<false>(Plain{nullptr, x}, states, scales, n, block);
}

PIECES quantize_finish(const float* x, STATE(x), int* scales, Index n, Index block) {
    State states[] = {HELD(x)};
    run_pieces<true>(Plain{nullptr, x}, states, scales, n, block);
}

TILES adam_tiles(float* p, const float* g, STATE(m), STATE(v), Index n, int log_lanes, ADAM) {
    State states[] = {HELD(m), HELD(v)};
    const Adam rule{p, g, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat};
    run_tiles(rule, states, n, log_lanes);
}

PIECES adam_largest(float* p, const float* g, STATE(m), STATE(v), int* scales, Index n, Index block, ADAM) {
    State states[] = {HELD(m), HELD(v)};
    const Adam rule{p, g, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat};
    run_pieces<false>(rule, states, scales, n, block);
}

PIECES adam_finish(float* p, const float* g, STATE(m), STATE(v), int* scales, Index n, Index block, ADAM) {
    State states[] = {HELD(m), HELD(v)};
    const Adam rule{p, g, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat};
    run_pieces<true>(rule, states, scales, n, block);
}

TILES momentum_tiles(float* p, const float* g, STATE(m), Index n, int log_lanes, MOMENTUM) {
    State states[] = {HELD(m)};
    run_tiles(Momentum{p, g, lr, momentum, weight_decay}, states, n, log_lanes);
}

PIECES momentum_largest(float* p, const float* g, STATE(m), int* scales, Index n, Index block, MOMENTUM) {
    State states[] = {HELD(m)};
    run_pieces<false>(Momentum{p, g, lr, momentum, weight_decay}, states, scales, n, block);
}

PIECES momentum_finish(float* p, const float* g, STATE(m), int* scales, Index n, Index block, MOMENTUM) {
    State states[] = {HELD(m)};
    run_pieces<true>(Momentum{p, g, lr, momentum, weight_decay}, states, scales, n, block);
}

TILES lion_tiles(float* p, const float* g, STATE(m), Index n, int log_lanes, LION) {
    State states[] = {HELD(m)};
    const Lion rule{p, g, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr};
    run_tiles(rule, states, n, log_lanes);
}

PIECES lion_largest(float* p, const float* g, STATE(m), int* scales, Index n, Index block, LION) {
    State states[] = {HELD(m)};
    const Lion rule{p, g, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr};
    run_pieces<false>(rule, states, scales, n, block);
}

PIECES lion_finish(float* p, const float* g, STATE(m), int* scales, Index n, Index block, LION) {
    State states[] = {HELD(m)};
    const Lion rule{p, g, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr};
    run_pieces<true>(rule, states, scales, n, block);
}

// out = code[codes] * absmax. On aligned memory, blocks of 2^shift >= 4 entries; shift is 62 where there is one block.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 4)
dequantize_quads(const uint8_t* codes, const float* absmax, const float* code, float* out, Index n, int shift) {
    constexpr int EACH = 4;
    __shared__ float values[256];
    if (threadIdx.x < 256) values[threadIdx.x] = code[threadIdx.x];
    __syncthreads();
    const Index tile = Index(TILE_THREADS) * EACH * 4;
    for (Index start = blockIdx.x * tile; start < n; start += gridDim.x * tile) {
        unsigned word[EACH];
        float scale[EACH];
        int live[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            const Index at = start + (k * TILE_THREADS + threadIdx.x) * 4;
            live[k] = int(max(Index(0), min(Index(4), n - at)));
            word[k] = load(codes + at, live[k]);
            scale[k] = live[k] > 0 ? absmax[at >> shift] : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            float value[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) value[c] = __fmul_rn(values[word[k] >> 8 * c & 255], scale[k]);
            store(out + start + (k * TILE_THREADS + threadIdx.x) * 4, value, live[k]);
        }
    }
}

// The same for any block on any memory, a warp for a piece of a block.
PIECES dequantize_pieces(const uint8_t* codes, const float* absmax, const float* code, float* out, Index n,
                         Index block) {
    __shared__ float values[256];
    values[threadIdx.x] = code[threadIdx.x];
    __syncthreads();
    const Index blocks = (n + block - 1) / block, each = (block + PIECE - 1) / PIECE;
    const Index warps = Index(gridDim.x) * (PIECE_THREADS / 32);
    for (Index piece = (Index(blockIdx.x) * PIECE_THREADS + threadIdx.x) >> 5; piece < blocks * each;
         piece += warps) {
        const Index b = piece / each, start = b * block + piece % each * PIECE;
        const Index end = min(n, min(start + PIECE, (b + 1) * block));
        const float scale = absmax[b];
#pragma unroll 4
        for (Index i = start + (threadIdx.x & 31); i < end; i += 32) out[i] = __fmul_rn(values[codes[i]], scale);
    }
}
