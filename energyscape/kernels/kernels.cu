// Every CUDA kernel of the library; one thread per item unless a comment says otherwise.
// Names end in f or d for float and double. Compiled by NVRTC at first use; no header is needed.

typedef unsigned int u32;
typedef unsigned long long u64;

// ---- Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): counter and key to four words.
struct Words { u32 x, y, z, w; };

__device__ __forceinline__ Words philox(u32 block, u32 call, u32 step, u32 purpose, u64 seed) {
    u32 c0 = block, c1 = call, c2 = step, c3 = purpose;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
    #pragma unroll
    for (int round = 0; round < 10; ++round) {
        u32 hi0 = __umulhi(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
        u32 hi1 = __umulhi(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
        c0 = hi1 ^ c1 ^ k0; c1 = lo1;
        c2 = hi0 ^ c3 ^ k1; c3 = lo0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    Words r = {c0, c1, c2, c3};
    return r;
}

// [0, 1) with 24 and 53 bits: 1.0 is never reached, 0.0 is.
__device__ __forceinline__ float unit_f(u32 a) { return (a >> 8) * 5.9604644775390625e-08f; }
__device__ __forceinline__ double unit_d(u32 a, u32 b) {
    return ((a >> 5) * 67108864.0 + (b >> 6)) * 1.1102230246251565e-16;
}

__device__ __forceinline__ void four_uniforms(Words r, float* u) {
    u[0] = unit_f(r.x); u[1] = unit_f(r.y); u[2] = unit_f(r.z); u[3] = unit_f(r.w);
}
__device__ __forceinline__ void two_uniforms(Words r, double* u) {
    u[0] = unit_d(r.x, r.y); u[1] = unit_d(r.z, r.w);
}

// Box-Muller; 1 - u lies in (0, 1], so that the logarithm is finite.
__device__ __forceinline__ void polar(float u, float v, float* n) {
    float radius = sqrtf(-2.0f * logf(1.0f - u)), angle = 6.2831853071795865f * v;
    n[0] = radius * cosf(angle); n[1] = radius * sinf(angle);
}
__device__ __forceinline__ void polar(double u, double v, double* n) {
    double radius = sqrt(-2.0 * log(1.0 - u)), angle = 6.283185307179586 * v;
    n[0] = radius * cos(angle); n[1] = radius * sin(angle);
}

#define INDEX ((u64)blockIdx.x * blockDim.x + threadIdx.x)

extern "C" __global__ void random_words(u64 seed, u32 purpose, u32 step, u32 call, u32* out) {
    if (INDEX > 0) return;
    Words r = philox(0u, call, step, purpose, seed);
    out[0] = r.x; out[1] = r.y; out[2] = r.z; out[3] = r.w;
}

extern "C" __global__ void uniform_f(u64 seed, u32 purpose, u32 step, u32 call, float* out, u64 n) {
    u64 i = INDEX; float u[4];
    four_uniforms(philox((u32)i, call, step, purpose, seed), u);
    for (int k = 0; k < 4; ++k) if (4 * i + k < n) out[4 * i + k] = u[k];
}
extern "C" __global__ void uniform_d(u64 seed, u32 purpose, u32 step, u32 call, double* out, u64 n) {
    u64 i = INDEX; double u[2];
    two_uniforms(philox((u32)i, call, step, purpose, seed), u);
    for (int k = 0; k < 2; ++k) if (2 * i + k < n) out[2 * i + k] = u[k];
}

extern "C" __global__ void normal_f(u64 seed, u32 purpose, u32 step, u32 call, float* out, u64 n) {
    u64 i = INDEX; float u[4], z[4];
    four_uniforms(philox((u32)i, call, step, purpose, seed), u);
    polar(u[0], u[1], z); polar(u[2], u[3], z + 2);
    for (int k = 0; k < 4; ++k) if (4 * i + k < n) out[4 * i + k] = z[k];
}
extern "C" __global__ void normal_d(u64 seed, u32 purpose, u32 step, u32 call, double* out, u64 n) {
    u64 i = INDEX; double u[2], z[2];
    two_uniforms(philox((u32)i, call, step, purpose, seed), u);
    polar(u[0], u[1], z);
    for (int k = 0; k < 2; ++k) if (2 * i + k < n) out[2 * i + k] = z[k];
}

// 0 or 1 with probability 1 / (1 + exp(-a)) of a 1; out may be a.
extern "C" __global__ void bernoulli_logit_f(u64 seed, u32 purpose, u32 step, u32 call,
                                             const float* a, float* out, u64 n) {
    u64 i = INDEX; float u[4];
    four_uniforms(philox((u32)i, call, step, purpose, seed), u);
    for (int k = 0; k < 4; ++k) {
        u64 j = 4 * i + k;
        if (j < n) out[j] = u[k] * (1.0f + expf(-a[j])) < 1.0f ? 1.0f : 0.0f;
    }
}
extern "C" __global__ void bernoulli_logit_d(u64 seed, u32 purpose, u32 step, u32 call,
                                             const double* a, double* out, u64 n) {
    u64 i = INDEX; double u[2];
    two_uniforms(philox((u32)i, call, step, purpose, seed), u);
    for (int k = 0; k < 2; ++k) {
        u64 j = 2 * i + k;
        if (j < n) out[j] = u[k] * (1.0 + exp(-a[j])) < 1.0 ? 1.0 : 0.0;
    }
}

// sum_j log(1 + exp(a_ij)) in double: one block of 256 threads per row.
#define SOFTPLUS_SUM(NAME, T, ABS, EXP, LOG1P)                                              \
extern "C" __global__ void NAME(const T* a, double* out, u64 columns) {                     \
    __shared__ double part[256];                                                            \
    const T* row = a + (u64)blockIdx.x * columns;                                           \
    double sum = 0.0;                                                                       \
    for (u64 j = threadIdx.x; j < columns; j += 256) {                                      \
        T x = row[j];                                                                       \
        sum += (x > 0 ? x : (T)0) + LOG1P(EXP(-ABS(x)));                                    \
    }                                                                                       \
    part[threadIdx.x] = sum;                                                                \
    for (int half = 128; half > 0; half >>= 1) {                                            \
        __syncthreads();                                                                    \
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];              \
    }                                                                                       \
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];                                        \
}
SOFTPLUS_SUM(softplus_sum_f, float, fabsf, expf, log1pf)
SOFTPLUS_SUM(softplus_sum_d, double, fabs, exp, log1p)

// One step of descent with momentum, then the proximal step of l1 |w| + l2 w^2 / 2.
// rate, l1 and l2 are already multiplied by the learning rate; v is ignored without momentum.
#define DESCEND(NAME, T, ABS)                                                               \
extern "C" __global__ void NAME(T* w, const T* g, T* v, T rate, T momentum, u32 nesterov,   \
                                T l1, T l2, u64 n) {                                        \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T step = -rate * g[i], x = w[i];                                                        \
    if (momentum > 0) {                                                                     \
        T velocity = momentum * v[i] + step;                                                \
        v[i] = velocity;                                                                    \
        step = nesterov ? momentum * velocity + step : velocity;                            \
    }                                                                                       \
    x += step;                                                                              \
    T size = ABS(x) - l1;                                                                   \
    w[i] = (size > 0 ? (x > 0 ? size : -size) : (T)0) / (1 + l2);                           \
}
DESCEND(descend_f, float, fabsf)
DESCEND(descend_d, double, fabs)

// Kick and drift of the leapfrog: q -= factor g, x += q; strides of 0 broadcast the factor.
#define LEAPFROG(NAME, T)                                                                   \
extern "C" __global__ void NAME(T* x, T* q, const T* g, const T* factor, u64 columns,       \
                                u64 row_stride, u64 column_stride, u64 n) {                 \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    u64 j = (i / columns) * row_stride + (i % columns) * column_stride;                     \
    T moved = q[i] - factor[j] * g[i];                                                      \
    q[i] = moved;                                                                           \
    x[i] += moved;                                                                          \
}
LEAPFROG(leapfrog_f, float)
LEAPFROG(leapfrog_d, double)
