// A tuned chain with the `fashion` network in ONNX Runtime: the 8x8 block averages of a 32x32 image to the image.
//
//   python -m rmp_fast.export fashion fashion.onnx --looks sr4.csv --task sr4
//   fashion fashion.onnx sr4.csv measurement.f32 estimate.f32
//
// Files *.f32 hold float32 numbers, row by row, on [-1, 1]: 64 of the measurement and 1024 of the estimate.
#include <onnxruntime_c_api.h>
#include <rmp_fast.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t kSize = 32, kFactor = 4;

// D(x, s) of an exported prior.
class Network {
 public:
  explicit Network(const char* path) {
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "fashion", &environment_));
    OrtSessionOptions* options = nullptr;
    check(api_->CreateSessionOptions(&options));
    OrtStatus* status = api_->CreateSession(environment_, path, options, &session_);
    api_->ReleaseSessionOptions(options);
    check(status);
    check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }
  ~Network() {
    api_->ReleaseMemoryInfo(memory_);
    api_->ReleaseSession(session_);
    api_->ReleaseEnv(environment_);
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // The network reads and writes the plan's own memory.
  void denoise(const float* x, const float* s, float* out, std::int64_t batch) {
    const std::vector<std::int64_t> image = {batch, 1, kSize, kSize}, items = {batch};
    const Tensor input(*this, const_cast<float*>(x), image), level(*this, const_cast<float*>(s), items);
    Tensor output(*this, out, image);
    const char* const names[] = {"x", "s"};
    const char* const name = "denoised";
    const OrtValue* const inputs[] = {input.value, level.value};
    check(api_->Run(session_, nullptr, names, inputs, 2, &name, 1, &output.value));
  }

 private:
  struct Tensor {
    Tensor(Network& network, float* data, const std::vector<std::int64_t>& shape) : api(network.api_) {
      std::size_t numbers = 1;
      for (const std::int64_t n : shape) numbers *= static_cast<std::size_t>(n);
      network.check(api->CreateTensorWithDataAsOrtValue(network.memory_, data, numbers * sizeof(float), shape.data(),
                                                        shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    }
    ~Tensor() { api->ReleaseValue(value); }
    Tensor(const Tensor&) = delete;
    Tensor& operator=(const Tensor&) = delete;

    const OrtApi* api;
    OrtValue* value = nullptr;
  };

  void check(OrtStatus* status) const {
    if (!status) return;
    const std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw std::runtime_error("ONNX Runtime: " + message);
  }

  // The version of the header may be newer than the library, or the other way round; what is used here is in all.
  const OrtApi* api_ = OrtGetApiBase()->GetApi(12);
  OrtEnv* environment_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

int denoise(void* user, const float* x, const float* s, float* out, std::int64_t batch, std::int64_t, void*) {
  static_cast<Network*>(user)->denoise(x, s, out, batch);  // what it throws, the library reports
  return 0;
}

std::vector<rmp_fast_look> read_looks(const char* path) {
  std::ifstream file(path);
  std::string header;
  std::getline(file, header);
  if (header != "level,noise,weight,momentum,variance") throw std::runtime_error(std::string(path) + " has no looks");
  std::vector<rmp_fast_look> looks;
  rmp_fast_look look{};
  char comma = 0;
  while (file >> look.level >> comma >> look.noise >> comma >> look.weight >> comma >> look.momentum >> comma >>
         look.variance) {
    looks.push_back(look);
  }
  return looks;
}

std::vector<float> read_floats(const char* path, std::size_t count) {
  std::vector<float> values(count);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(float)))) {
    throw std::runtime_error(std::string(path) + " does not hold " + std::to_string(count) + " float32 numbers");
  }
  return values;
}

void check(rmp_fast_status status) {
  if (status) throw std::runtime_error(rmp_fast_last_error());
}

void run(char** arguments) {
  Network network(arguments[1]);
  const std::vector<rmp_fast_look> looks = read_looks(arguments[2]);
  const std::vector<float> y = read_floats(arguments[3], kSize * kSize / (kFactor * kFactor));
  const double noise_std = 0.05;

  rmp_fast_options options;
  check(rmp_fast_options_init(&options, sizeof options));
  options.batch = options.channels = 1, options.height = options.width = kSize;
  options.looks = looks.data(), options.look_count = static_cast<std::int64_t>(looks.size());
  options.start = RMP_FAST_START_SMOOTH;
  options.noise_std = &noise_std, options.noise_std_count = 1;
  options.op.kind = RMP_FAST_BLOCK_AVERAGE, options.op.factor = kFactor;
  options.denoiser = denoise, options.user = &network;

  rmp_fast_plan* plan = nullptr;
  check(rmp_fast_plan_create(&options, &plan));
  std::vector<float> estimate(kSize * kSize);
  std::uint8_t ok = 0;
  const rmp_fast_status status = rmp_fast_plan_execute(plan, y.data(), nullptr, nullptr, estimate.data(), &ok, nullptr);
  rmp_fast_plan_destroy(plan);
  check(status);
  if (!ok) throw std::runtime_error("the chain left the finite range");
  std::ofstream file(arguments[4], std::ios::binary);
  const auto bytes = static_cast<std::streamsize>(estimate.size() * sizeof(float));
  if (!file.write(reinterpret_cast<const char*>(estimate.data()), bytes)) {
    throw std::runtime_error(std::string(arguments[4]) + " cannot be written");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: fashion MODEL.onnx LOOKS.csv MEASUREMENT.f32 ESTIMATE.f32\n");
    return 2;
  }
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fashion: %s\n", error.what());
    return 1;
  }
  return 0;
}
