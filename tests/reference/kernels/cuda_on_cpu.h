// Runs the kernels of a .cu file on a CPU, for tests where there is no GPU: block after block, the threads of a block
// as fibers that change at __syncthreads and at warp intrinsics. What a block has in shared memory starts as NaN.
// It proves arithmetic, indexing and where threads wait; it knows nothing of speed, memory order or lost __syncthreads
// between fibers that happen to run in order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <setjmp.h>
#include <ucontext.h>
#include <vector_types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#undef __device__
#undef __global__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ thread_local

using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;

namespace cpu {

constexpr std::size_t STACK_BYTES = 1 << 16;
constexpr int WARP = 32;

// A fiber starts by its context; later changes are jumps, which unlike swapcontext ask nothing of the kernel.
struct Fiber {
  ucontext_t context;
  jmp_buf place_in_code;
  bool started;
  uint3 thread;
  int place;
  bool done;
  unsigned turns = 0;  // warp intrinsics met so far
};

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  std::uint64_t slot[2][WARP];
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline std::vector<char> stacks;
inline Barrier block;
inline int votes[2];
inline unsigned vote_turn;
inline Fiber* current;
inline jmp_buf scheduler;
inline void (*entry)(void*);
inline void* entry_arguments;

inline void yield() {
  Fiber* self = current;
  if (_setjmp(self->place_in_code) == 0) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, int count) {
  unsigned generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline int warp_size(int warp) { return min<int>(WARP, int(fibers.size()) - warp * WARP); }

// What each lane of the caller's warp gave; a lane is never more than one turn ahead, so two rows are enough.
template <typename T> const std::uint64_t* exchange(T value) {
  static_assert(sizeof(T) <= 8);
  int warp = current->place / WARP;
  std::uint64_t* slots = warps[warp].slot[current->turns++ % 2];
  std::memcpy(slots + current->place % WARP, &value, sizeof(T));
  wait(warps[warp].barrier, warp_size(warp));
  return slots;
}

template <typename T> T lane_value(const std::uint64_t* slots, int lane) {
  T value;
  std::memcpy(&value, slots + lane, sizeof(T));
  return value;
}

inline void start() {
  entry(entry_arguments);
  current->done = true;
  _longjmp(scheduler, 1);
}

// Lets a fiber run until it waits or ends.
__attribute__((noinline)) inline void turn(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.thread;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place_in_code, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

inline void run_block(int threads) {
  fibers.resize(threads);
  warps.assign((threads + WARP - 1) / WARP, Warp{});
  stacks.resize(threads * STACK_BYTES);
  block = Barrier{};
  vote_turn = 0;
  votes[0] = votes[1] = 0;
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.place = i;
    fiber.done = fiber.started = false;
    fiber.turns = 0;
    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.data() + i * STACK_BYTES;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  static int left;
  for (left = threads; left > 0;) {
    for (Fiber& fiber : fibers) {
      if (fiber.done) continue;
      turn(fiber);
      if (current->done) --left;
    }
  }
}

template <typename... A> struct Call {
  void (*kernel)(A...);
  std::tuple<A...> arguments;
  static void run(void* self) {
    auto* call = static_cast<Call*>(self);
    std::apply(call->kernel, call->arguments);
  }
};

template <typename... A, std::size_t... I>
std::tuple<A...> unpack_arguments(void** places, std::index_sequence<I...>) {
  return {*static_cast<A*>(places[I])...};
}

// `clear` is called before each block, to forget what the last one left in shared memory.
template <typename... A>
void launch(void (*kernel)(A...), const unsigned* grid, const unsigned* threads, void** places, void (*clear)()) {
  Call<A...> call{kernel, unpack_arguments<A...>(places, std::index_sequence_for<A...>{})};
  entry = &Call<A...>::run;
  entry_arguments = &call;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        clear();
        run_block(int(threads[0] * threads[1] * threads[2]));
      }
}

}  // namespace cpu

inline void __syncthreads() { cpu::wait(cpu::block, int(cpu::fibers.size())); }
inline int __syncthreads_or(int predicate) {
  unsigned turn = cpu::vote_turn % 2;
  cpu::votes[turn] |= predicate != 0;
  __syncthreads();
  int result = cpu::votes[turn];
  __syncthreads();
  cpu::votes[turn] = 0;
  return result;
}
inline void __syncwarp(unsigned = ~0u) { cpu::exchange(0); }

template <typename T> T __shfl_sync(unsigned, T value, int lane, int width = 32) {
  int first = cpu::current->place % 32 / width * width;
  return cpu::lane_value<T>(cpu::exchange(value), first + lane % width);
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
  int lane = cpu::current->place % 32, other = lane ^ mask;
  return cpu::lane_value<T>(cpu::exchange(value), other / width == lane / width ? other : lane);
}
template <typename T> T __shfl_down_sync(unsigned, T value, unsigned step, int width = 32) {
  int lane = cpu::current->place % 32, other = lane + int(step);
  return cpu::lane_value<T>(cpu::exchange(value), other / width == lane / width ? other : lane);
}
template <typename T> T __shfl_up_sync(unsigned, T value, unsigned step, int width = 32) {
  int lane = cpu::current->place % 32, other = lane - int(step);
  return cpu::lane_value<T>(cpu::exchange(value), other >= lane / width * width ? other : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const std::uint64_t* slots = cpu::exchange(int(predicate != 0));
  unsigned bits = 0;
  for (int lane = 0; lane < cpu::warp_size(cpu::current->place / 32); ++lane)
    bits |= unsigned(cpu::lane_value<int>(slots, lane)) << lane;
  return bits;
}
inline int __reduce_max_sync(unsigned, int value) {
  const std::uint64_t* slots = cpu::exchange(value);
  for (int lane = 0; lane < cpu::warp_size(cpu::current->place / 32); ++lane)
    value = max(value, cpu::lane_value<int>(slots, lane));
  return value;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

inline float __int_as_float(int v) { return __builtin_bit_cast(float, v); }
inline int __float_as_int(float v) { return __builtin_bit_cast(int, v); }
inline float __uint_as_float(unsigned v) { return __builtin_bit_cast(float, v); }
inline unsigned __float_as_uint(float v) { return __builtin_bit_cast(unsigned, v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline int __float2int_rn(float a) { return int(std::nearbyintf(a)); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned places) {
  std::uint64_t bytes = std::uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (places >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }

template <typename T> T __ldcs(const T* place) { return *place; }
template <typename T> T __ldcg(const T* place) { return *place; }
template <typename T> T __ldg(const T* place) { return *place; }
template <typename T> void __stcs(T* place, T value) { *place = value; }
template <typename T> void __stcg(T* place, T value) { *place = value; }

template <typename T> T atomic_old(T* place, T value) {
  T old = *place;
  *place = value;
  return old;
}
template <typename T> T atomicAdd(T* place, T value) { return atomic_old(place, T(*place + value)); }
template <typename T> T atomicMax(T* place, T value) { return atomic_old(place, max(*place, value)); }
template <typename T> T atomicOr(T* place, T value) { return atomic_old(place, T(*place | value)); }
inline void __threadfence() {}
