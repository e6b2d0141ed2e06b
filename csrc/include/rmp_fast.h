/* Reverse mean propagation without Python: the mean of x0 given y = A(x0) + n from one diffusion chain, for a denoiser
 * D(x, s) = E[x0 | x0 + s z = x] that the caller brings as a function.
 *
 *   rmp_fast_options options;
 *   rmp_fast_options_init(&options, sizeof options);
 *   options.batch = 1, options.channels = 1, options.height = options.width = 32;
 *   options.levels = levels, options.level_count = 11;         rmp_fast_log_levels(10, 0.05, 20.0, levels)
 *   options.noise_std = &noise_std, options.noise_std_count = 1;
 *   options.data_variance = 0.4;
 *   options.op.kind = RMP_FAST_BLOCK_AVERAGE, options.op.factor = 4;
 *   options.denoiser = my_denoiser, options.user = my_network;
 *   rmp_fast_plan *plan;
 *   if (rmp_fast_plan_create(&options, &plan) != RMP_FAST_OK) puts(rmp_fast_last_error());
 *   rmp_fast_plan_execute(plan, y, seeds, NULL, out, ok, NULL);
 *   rmp_fast_plan_destroy(plan);
 *
 * Memory: images are float32, contiguous, (batch, channels, height, width), on [-1, 1]; signals of N numbers have
 * channels = height = 1 and width = N. An item is one image of a batch, numel = channels * height * width numbers.
 * Noise levels are standard deviations on the same range.
 *
 * Errors: every function that can fail returns a status, and rmp_fast_last_error() says in words what was wrong with
 * the last failed call of the calling thread. Nothing is thrown across this boundary: what callbacks throw becomes
 * RMP_FAST_CALLBACK_FAILED.
 *
 * Threads: any number of threads may create, execute and destroy different plans at once. One plan serves one thread at
 * a time, and refuses another with RMP_FAST_BUSY; it must not be destroyed while it executes. Executing allocates
 * nothing. Arithmetic runs on `threads` OpenMP threads; their number changes no bit of the result.
 *
 * The same seeds give the same result, as the Python package's backend "cpu" does where the denoiser is the same: to
 * the last bit for RMP_FAST_IDENTITY, RMP_FAST_MASK and RMP_FAST_BLOCK_AVERAGE from a given start, else to rounding. */
#ifndef RMP_FAST_H
#define RMP_FAST_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RMP_FAST_API __attribute__((visibility("default")))
#else
#define RMP_FAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t rmp_fast_status;
enum {
  RMP_FAST_OK = 0,
  RMP_FAST_INVALID_ARGUMENT = 1,
  RMP_FAST_OUT_OF_MEMORY = 2,
  RMP_FAST_BUSY = 3,            /* the plan is executing already */
  RMP_FAST_CALLBACK_FAILED = 4, /* a callback returned something else than 0, or threw */
  RMP_FAST_INTERNAL_ERROR = 5
};

/* --- What the caller brings ------------------------------------------------------------------------------------------
 * All return 0, or anything else to stop the execution. `stream` is what rmp_fast_plan_execute was given. */

/* out <- D(x, s): x and out (batch, numel), s (batch). `batch` is twice the plan's for RMP_FAST_ANTITHETIC. */
typedef int (*rmp_fast_denoiser)(void* user, const float* x, const float* s, float* out, int64_t batch, int64_t numel,
                                 void* stream);

/* A linear map of every item: `from` (batch, from_numel) to `to` (batch, to_numel). */
typedef int (*rmp_fast_map)(void* user, const float* from, float* to, int64_t batch, int64_t from_numel,
                            int64_t to_numel, void* stream);

/* denoised (batch, numel) <- denoised + A^T (A A^T + q I)^-1 (y - A denoised), or any other correction towards y;
 * q = noise_ratio (batch) is noise_std^2 / (variance of x0 given the denoised image). y (batch, measurement_numel). */
typedef int (*rmp_fast_correction)(void* user, const float* y, const float* noise_ratio, float* denoised, int64_t batch,
                                   int64_t numel, int64_t measurement_numel, void* stream);

/* --- The operator A --------------------------------------------------------------------------------------------------
 * Measurements y are float32 (batch, measurement_numel). */

enum {
  RMP_FAST_IDENTITY = 0,      /* y like the image */
  RMP_FAST_MASK = 1,          /* y like the image, looked at where `mask` is not 0 */
  RMP_FAST_BLOCK_AVERAGE = 2, /* y (channels, ceil(height / factor), ceil(width / factor)) */
  RMP_FAST_GAUSSIAN_BLUR = 3, /* y like the image; taps to 4 `blur_std` that sum to one */
  RMP_FAST_LINEAR = 4,        /* any linear A, from `apply` and `adjoint`, by conjugate gradients */
  RMP_FAST_CORRECTION = 5     /* anything, from `correct` */
};
enum { RMP_FAST_REFLECT = 0, RMP_FAST_CIRCULAR = 1 }; /* reflect repeats the edge: b a | a b */

typedef struct rmp_fast_operator {
  int32_t kind;
  int32_t boundary;          /* of the blur */
  const uint8_t* mask;       /* (mask_items, numel), copied */
  int64_t mask_items;        /* 1: the same for all; or batch */
  int64_t factor;            /* of the block average, >= 1 */
  double blur_std;           /* pixels, > 0 */
  int64_t measurement_numel; /* of RMP_FAST_LINEAR and RMP_FAST_CORRECTION */
  int64_t iterations;        /* conjugate gradient steps of RMP_FAST_LINEAR; default 50 */
  rmp_fast_map apply;        /* x -> A x */
  rmp_fast_map adjoint;      /* y -> A^T y, <A x, y> = <x, A^T y> */
  rmp_fast_correction correct;
  void* user; /* the first argument of these */
} rmp_fast_operator;

/* --- The chain -------------------------------------------------------------------------------------------------------
 */

/* One look of a chain given look by look, as tuned presets are:
 * mean <- mean + weight (d_y(mean + noise e) - mean) + momentum (mean - mean before), the denoiser told `level`. */
typedef struct rmp_fast_look {
  double level; /* > 0 */
  double noise; /* >= 0, standard deviation */
  double weight;
  double momentum;
  double variance; /* > 0, of x0 per element given the denoised image */
} rmp_fast_look;

enum { RMP_FAST_CONTROL = 0, RMP_FAST_DRAWN = 1, RMP_FAST_ANTITHETIC = 2, RMP_FAST_NO_NOISE = 3 };
enum { RMP_FAST_CURRENT = 0, RMP_FAST_NEXT = 1 };
enum { RMP_FAST_FIXED = 0, RMP_FAST_LEARNED = 1, RMP_FAST_DIAGONAL = 2 };
enum { RMP_FAST_START_ZERO = 0, RMP_FAST_START_SMOOTH = 1 };

/* The names are those of rmp_fast.Plan in Python, whose documentation has the equations. What pointers point to is
 * copied by rmp_fast_plan_create, except `user`. */
typedef struct rmp_fast_options {
  size_t size; /* of this struct, set by rmp_fast_options_init */

  int64_t batch, channels, height, width;

  const double* levels; /* (level_count) 0 < s_0 < s_1 < ... < s_T */
  int64_t level_count;
  const rmp_fast_look* looks; /* (look_count), instead of levels */
  int64_t look_count;

  rmp_fast_operator op;
  const double* noise_std; /* (noise_std_count) standard deviations of n, >= 0 */
  int64_t noise_std_count; /* 1 or batch */
  double data_variance;    /* p > 0, variance per element of clean images; with looks not used */

  rmp_fast_denoiser denoiser;
  void* user; /* its first argument */

  int32_t noise;         /* default RMP_FAST_CONTROL */
  int32_t anchor;        /* default RMP_FAST_CURRENT */
  int32_t covariance;    /* default RMP_FAST_FIXED */
  int32_t start;         /* the first mean where none is given; default RMP_FAST_START_ZERO */
  int64_t inner_steps;   /* looks per level; default 2 */
  double step_size;      /* > 0, or 0 for averaging: relaxation * 2 / (2 + j) at inner iteration j; default 0 */
  double relaxation;     /* in (0, 2]; default 1.4 */
  double precision_rate; /* of a learned covariance, at most 1; default 0.3 */

  int32_t threads; /* of the arithmetic; default 0: as many as OpenMP would take */
} rmp_fast_options;

typedef struct rmp_fast_plan rmp_fast_plan;

/* Defaults; `size` is sizeof(rmp_fast_options) of the program. */
RMP_FAST_API rmp_fast_status rmp_fast_options_init(rmp_fast_options* options, size_t size);

/* s_k = low (high / low)^(k / steps) into levels (steps + 1). */
RMP_FAST_API rmp_fast_status rmp_fast_log_levels(int64_t steps, double low, double high, double* levels);

/* Checks, derives and allocates everything. On failure *plan is NULL. */
RMP_FAST_API rmp_fast_status rmp_fast_plan_create(const rmp_fast_options* options, rmp_fast_plan** plan);

/* NULL is allowed. */
RMP_FAST_API void rmp_fast_plan_destroy(rmp_fast_plan* plan);

/* Other noise levels from here on: noise_std (count), count = 1 or batch. */
RMP_FAST_API rmp_fast_status rmp_fast_plan_set_noise_std(rmp_fast_plan* plan, const double* noise_std, int64_t count);

/* Runs the chain.
 *   y      (batch, measurement_numel), finite
 *   seeds  (batch), any 64 bits each; NULL: 0, 1, ...
 *   start  (batch, numel) the first mean, finite; NULL: as options.start says
 *   out    (batch, numel) receives the mean
 *   ok     (batch) or NULL; 0: the item left the finite range, and its mean is the last finite one
 *   stream handed to the callbacks
 * Where a callback fails, `out` holds the mean reached so far, of which a later execution depends in nothing. */
RMP_FAST_API rmp_fast_status rmp_fast_plan_execute(rmp_fast_plan* plan, const float* y, const int64_t* seeds,
                                                   const float* start, float* out, uint8_t* ok, void* stream);

/* Calls of the denoiser in one execution. */
RMP_FAST_API int64_t rmp_fast_plan_looks(const rmp_fast_plan* plan);
/* Numbers of y per item. */
RMP_FAST_API int64_t rmp_fast_plan_measurement_numel(const rmp_fast_plan* plan);
/* Bytes of the buffers that the plan owns. */
RMP_FAST_API int64_t rmp_fast_plan_buffer_bytes(const rmp_fast_plan* plan);
/* The table of coefficients, (looks + 1, batch, 8), into rows (count); kernels/params.h says what they are. */
RMP_FAST_API rmp_fast_status rmp_fast_plan_coefficients(const rmp_fast_plan* plan, float* rows, int64_t count);

/* What was wrong with this thread's last call that failed; empty before. Valid until the next one that fails. */
RMP_FAST_API const char* rmp_fast_last_error(void);
/* Of the library, as "0.1.0". */
RMP_FAST_API const char* rmp_fast_version(void);

#ifdef __cplusplus
}
#endif

#endif
