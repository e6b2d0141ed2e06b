// Fibers, blocks and warps behind cuda_runtime.h.
#include "tests/simt/simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/simt/cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStack = 1 << 17, kMostShared = 48 << 10, kSlot = 16;

std::mutex launching;
std::mt19937_64 shuffler;
unsigned multiprocessors = 2;
unsigned launches = 0;  // so far
cudaError_t injected = cudaSuccess, last = cudaSuccess;
std::string failure;  // of the launch under way

// A stack that runs threads, one after the other, until one of them has to wait.
struct Fiber {
  ucontext_t context;
  unsigned char* stack = nullptr;
  std::size_t size = kStack;
  void* fake_stack = nullptr;
};

enum class State { unstarted, running, at_barrier, in_exchange, ended };

struct Thread {
  unsigned index = 0;
  State state = State::unstarted;
  int line = 0;
  unsigned mask = 0;
  Fiber* fiber = nullptr;
  unsigned char brought[kSlot];
  unsigned char values[kWarp * kSlot];  // of all lanes, when an exchange is complete
};

struct Block {
  std::vector<Thread> threads;
  std::vector<unsigned> order;  // in which threads start
  std::size_t started = 0;
  const std::function<void()>* body = nullptr;
  std::unique_ptr<unsigned char[]> shared;
  std::size_t shared_bytes = 0;
  unsigned phase = 0;  // barriers passed
};

Block block;
Thread* current = nullptr;
Fiber scheduler;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;

// AddressSanitizer is told of every change of stacks; the scheduler's is known once a fiber has come from it.
void arrive([[maybe_unused]] Fiber& here) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &size);
  if (&here == &scheduler) return;
  scheduler.stack = static_cast<unsigned char*>(const_cast<void*>(bottom));
  scheduler.size = size;
#endif
}

void switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);
#endif
  swapcontext(&from.context, &to.context);
  arrive(from);
}

void enter(Thread& thread) {
  current = &thread;
  threadIdx = {thread.index % blockDim.x, thread.index / blockDim.x % blockDim.y,
               thread.index / blockDim.x / blockDim.y};
  thread.state = State::running;
}

// What a fiber does for ever: the next thread that has not started; with none left, rest.
void run_threads() {
  arrive(*current->fiber);
  for (;;) {
    Fiber* const here = current->fiber;
    (*block.body)();
    current->state = State::ended;
    if (block.started < block.order.size() && failure.empty()) {
      Thread& next = block.threads[block.order[block.started++]];
      next.fiber = here;
      enter(next);
      continue;
    }
    idle.push_back(here);
    switch_to(*here, scheduler);
  }
}

Fiber* free_fiber() {
  if (idle.empty()) {
    auto fiber = std::make_unique<Fiber>();
    void* const stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    fiber->stack = static_cast<unsigned char*>(stack);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = kStack;
    makecontext(&fiber->context, run_threads, 0);
    idle.push_back(fiber.get());
    fibers.push_back(std::move(fiber));
  }
  Fiber* const fiber = idle.back();
  idle.pop_back();
  return fiber;
}

void resume(Thread& thread) {
  if (!thread.fiber) thread.fiber = free_fiber();
  enter(thread);
  switch_to(scheduler, *thread.fiber);
}

void wait(State state, int line, unsigned mask) {
  Thread& self = *current;
  self.state = state;
  self.line = line;
  self.mask = mask;
  switch_to(*self.fiber, scheduler);
}

// Lets the lanes of complete exchanges go on; whether there were any.
bool finish_exchanges(std::vector<Thread*>& ready) {
  bool any = false;
  for (std::size_t first = 0; first < block.threads.size(); first += kWarp) {
    for (std::size_t i = first; i < std::min(first + kWarp, block.threads.size()); ++i) {
      Thread& thread = block.threads[i];
      if (thread.state != State::in_exchange || !(thread.mask >> (i - first) & 1)) continue;
      const auto waits = [&](unsigned lane) {
        if (!(thread.mask >> lane & 1)) return true;
        if (first + lane >= block.threads.size()) return false;
        const Thread& other = block.threads[first + lane];
        return other.state == State::in_exchange && other.mask == thread.mask && other.line == thread.line;
      };
      unsigned lane = 0;
      while (lane < kWarp && waits(lane)) ++lane;
      if (lane < kWarp) continue;
      const unsigned mask = thread.mask;
      for (lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Thread& receiver = block.threads[first + lane];
        for (unsigned from = 0; from < kWarp; ++from) {
          if (mask >> from & 1) std::memcpy(receiver.values + from * kSlot, block.threads[first + from].brought, kSlot);
        }
        receiver.state = State::running;
        ready.push_back(&receiver);
      }
      any = true;
    }
  }
  return any;
}

// Opens the barrier if all threads that have not ended wait at it.
bool open_barrier(std::vector<Thread*>& ready) {
  int line = 0;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::ended) continue;
    if (thread.state != State::at_barrier || (line && thread.line != line)) return false;
    line = thread.line;
  }
  for (Thread& thread : block.threads) {
    if (thread.state == State::ended) continue;
    thread.state = State::running;
    ready.push_back(&thread);
  }
  ++block.phase;
  return !ready.empty();
}

std::string stuck() {
  std::string text = "threads of a block wait for each other in vain:";
  std::vector<int> lines;
  std::size_t ended = 0;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::ended) {
      ++ended;
    } else if (std::find(lines.begin(), lines.end(), thread.line) == lines.end()) {
      lines.push_back(thread.line);
      text += std::string(thread.state == State::at_barrier ? " barrier" : " exchange") + " in line " +
              std::to_string(thread.line) + ",";
    }
  }
  return text + " " + std::to_string(ended) + " ended";
}

void run_block(unsigned threads, const std::function<void()>& body) {
  block.threads.assign(threads, {});
  for (unsigned i = 0; i < threads; ++i) block.threads[i].index = i;
  block.order.resize(threads);
  std::iota(block.order.begin(), block.order.end(), 0);
  std::shuffle(block.order.begin(), block.order.end(), shuffler);
  block.started = 0;
  block.phase = 0;
  block.body = &body;
  // Exactly as large as asked for, so that AddressSanitizer sees its ends.
  block.shared.reset(new unsigned char[block.shared_bytes]);
  std::memset(block.shared.get(), 0xFF, block.shared_bytes);
  forget_shared(block.shared.get(), block.shared_bytes);
  while (block.started < threads && failure.empty()) resume(block.threads[block.order[block.started++]]);
  std::vector<Thread*> ready;
  while (failure.empty()) {
    ready.clear();
    if (!finish_exchanges(ready) && !open_barrier(ready)) break;
    std::shuffle(ready.begin(), ready.end(), shuffler);
    for (Thread* thread : ready) resume(*thread);
  }
  const auto ended = [](const Thread& thread) { return thread.state == State::ended; };
  if (failure.empty() && !std::all_of(block.threads.begin(), block.threads.end(), ended)) fail(stuck());
}

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

}  // namespace

void fail(const std::string& why) {
  if (failure.empty()) failure = why;
}
Where where() {
  if (!current || current->state != State::running) return {};
  return {true,
          blockIdx.x + blockIdx.y * gridDim.x,
          current->index,
          block.phase,
          current->fiber->stack,
          current->fiber->stack + kStack,
          block.shared.get(),
          block.shared.get() + block.shared_bytes};
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(launching);
  if (injected != cudaSuccess) {
    const cudaError_t error = injected;
    injected = cudaSuccess;
    return failed(error);
  }
  const unsigned threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  const dim3& grid = config.gridDim;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z != 1 || grid.x > 0x7FFFFFFF ||
      grid.y > 65535 || config.dynamicSmemBytes > kMostShared) {
    return failed(cudaErrorInvalidConfiguration);
  }
  ++launches;
  blockDim = config.blockDim;
  gridDim = grid;
  block.shared_bytes = config.dynamicSmemBytes;
  failure.clear();
  forget_accesses();
  std::vector<unsigned> order(std::size_t{grid.x} * grid.y);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), shuffler);
  for (const unsigned index : order) {
    blockIdx = {index % grid.x, index / grid.x, 0};
    run_block(threads, body);
    if (!failure.empty()) break;
  }
  current = nullptr;
  if (failure.empty()) return cudaSuccess;
  idle.clear();  // some fibers stay where they were for ever
  return failed(cudaErrorLaunchFailure);
}

void* shared_memory() { return block.shared.get(); }
void barrier(int line) { wait(State::at_barrier, line, 0); }

const unsigned char* exchange(unsigned mask, const void* value, std::size_t bytes, int line) {
  Thread& self = *current;
  std::memcpy(self.brought, value, bytes);
  wait(State::in_exchange, line, mask);
  return self.values;
}

void store_through(unsigned char* p, unsigned char value) { *p = value; }
unsigned lane() { return current->index % kWarp; }

}  // namespace simt

using namespace simt;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      break;
  }
  return failure.c_str();
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
         : error == cudaErrorInvalidDevice      ? "cudaErrorInvalidDevice"
                                                : "cudaErrorLaunchFailure";
}
cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return failed(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  *value = static_cast<int>(multiprocessors);
  return failed(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*memory) return failed(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xFF, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

// What the tests set.
extern "C" __attribute__((visibility("default"))) void simt_setup(std::uint64_t seed, unsigned processors) {
  shuffler.seed(seed);
  multiprocessors = processors;
}
extern "C" __attribute__((visibility("default"))) unsigned simt_launches() { return launches; }
extern "C" __attribute__((visibility("default"))) void simt_inject(int error) {
  injected = static_cast<cudaError_t>(error);
}
