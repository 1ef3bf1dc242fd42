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

// 0 or 1 with probability 1 / (1 + exp(-x)) of a 1, where x is a, or with columns > 0 a + bias, one
// bias for each column; out may be a.
extern "C" __global__ void bernoulli_logit_f(u64 seed, u32 purpose, u32 step, u32 call,
                                             const float* a, const float* bias, float* out,
                                             u64 columns, u64 n) {
    u64 i = INDEX; float u[4];
    four_uniforms(philox((u32)i, call, step, purpose, seed), u);
    for (int k = 0; k < 4; ++k) {
        u64 j = 4 * i + k;
        if (j < n) {
            float x = columns ? a[j] + bias[j % columns] : a[j];
            out[j] = u[k] * (1.0f + expf(-x)) < 1.0f ? 1.0f : 0.0f;
        }
    }
}
extern "C" __global__ void bernoulli_logit_d(u64 seed, u32 purpose, u32 step, u32 call,
                                             const double* a, const double* bias, double* out,
                                             u64 columns, u64 n) {
    u64 i = INDEX; double u[2];
    two_uniforms(philox((u32)i, call, step, purpose, seed), u);
    for (int k = 0; k < 2; ++k) {
        u64 j = 2 * i + k;
        if (j < n) {
            double x = columns ? a[j] + bias[j % columns] : a[j];
            out[j] = u[k] * (1.0 + exp(-x)) < 1.0 ? 1.0 : 0.0;
        }
    }
}

// The same x: its logistic function; out may be a.
#define SIGMOID(NAME, T, EXP)                                                               \
extern "C" __global__ void NAME(const T* a, const T* bias, T* out, u64 columns, u64 n) {    \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T x = columns ? a[i] + bias[i % columns] : a[i];                                        \
    out[i] = 1 / (1 + EXP(-x));                                                             \
}
SIGMOID(sigmoid_f, float, expf)
SIGMOID(sigmoid_d, double, exp)

// The sum of what the 256 threads of a block have, for all of them.
__device__ __forceinline__ double block_sum(double value, double* part) {
    part[threadIdx.x] = value;
    for (int half = 128; half > 0; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    __syncthreads();
    return part[0];
}

// sum_j log(1 + exp(x_ij)) in double, x as above where biased: one block of 256 threads per row.
#define SOFTPLUS_SUM(NAME, T, ABS, EXP, LOG1P)                                              \
extern "C" __global__ void NAME(const T* a, const T* bias, double* out, u64 columns,        \
                                u32 biased) {                                               \
    __shared__ double part[256];                                                            \
    const T* row = a + (u64)blockIdx.x * columns;                                           \
    double sum = 0.0;                                                                       \
    for (u64 j = threadIdx.x; j < columns; j += 256) {                                      \
        T x = biased ? row[j] + bias[j] : row[j];                                           \
        sum += (x > 0 ? x : (T)0) + LOG1P(EXP(-ABS(x)));                                    \
    }                                                                                       \
    sum = block_sum(sum, part);                                                             \
    if (threadIdx.x == 0) out[blockIdx.x] = sum;                                            \
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
    w[i] = (size <= 0 ? (T)0 : x < 0 ? -size : size) / (1 + l2); /* NaN stays NaN */        \
}
DESCEND(descend_f, float, fabsf)
DESCEND(descend_d, double, fabs)

// Running moments of g, and what Adam steps along: g = mean / (sqrt(square) + epsilon).
#define ADAPT(NAME, T, SQRT)                                                                \
extern "C" __global__ void NAME(T* mean, T* square, T* g, T beta1, T beta2, T rest1,        \
                                T rest2, T epsilon, u64 n) {                                \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T x = g[i], m = beta1 * mean[i] + rest1 * x, v = beta2 * square[i] + rest2 * (x * x);   \
    mean[i] = m;                                                                            \
    square[i] = v;                                                                          \
    g[i] = m / (SQRT(v) + epsilon);                                                         \
}
ADAPT(adapt_f, float, sqrtf)
ADAPT(adapt_d, double, sqrt)

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

// How a trajectory sets off: q = scale z - scale^2 / (2 heat) g, moved = x + q.
#define SET_OFF(NAME, T)                                                                    \
extern "C" __global__ void NAME(const T* x, const T* z, const T* g, const T* scale, T* moved, \
                                T* q, T heat, u64 columns, u64 row_stride,                  \
                                u64 column_stride, u64 n) {                                 \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T s = scale[(i / columns) * row_stride + (i % columns) * column_stride];                \
    T step = z[i] * s - s * s / heat * (T)0.5 * g[i];                                       \
    q[i] = step;                                                                            \
    moved[i] = x[i] + step;                                                                 \
}
SET_OFF(set_off_f, float)
SET_OFF(set_off_d, double)

// Its last kick, and momenta standardised again; where a coordinate is held they are the first z.
#define ARRIVE(NAME, T)                                                                     \
extern "C" __global__ void NAME(T* q, const T* z, const T* g, const T* scale, T heat,       \
                                u64 columns, u64 row_stride, u64 column_stride, u64 n) {    \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T s = scale[(i / columns) * row_stride + (i % columns) * column_stride];                \
    q[i] = s > 0 ? (q[i] - s * s / heat * (T)0.5 * g[i]) / s : z[i];                        \
}
ARRIVE(arrive_f, float)
ARRIVE(arrive_d, double)

// Metropolis: each chain takes its proposal where Exp(1) > dH, or stays. One block per chain.
// u is uniform on [0, 1); a change that is not finite counts as infinite.
#define ACCEPT(NAME, T)                                                                     \
extern "C" __global__ void NAME(const double* energy, const double* end_energy, const T* z, \
                                const T* end_z, const double* u, const T* x, const T* end_x, \
                                const T* g, const T* end_g, double heat, double divergence, \
                                u64 columns, double* energy_out, T* x_out, T* g_out,        \
                                double* acceptance, bool* accepted, bool* divergent) {      \
    __shared__ double part[256];                                                            \
    u64 row = blockIdx.x, first = row * columns;                                            \
    double change = 0.0;                                                                    \
    for (u64 j = first + threadIdx.x; j < first + columns; j += 256)                        \
        change += (double)end_z[j] * end_z[j] - (double)z[j] * z[j];                        \
    change = 0.5 * block_sum(change, part) + (end_energy[row] - energy[row]) / heat;        \
    bool finite = change - change == 0.0;                                                   \
    bool take = finite && -log(1.0 - u[row]) > change;                                      \
    for (u64 j = first + threadIdx.x; j < first + columns; j += 256) {                      \
        x_out[j] = take ? end_x[j] : x[j];                                                  \
        g_out[j] = take ? end_g[j] : g[j];                                                  \
    }                                                                                       \
    if (threadIdx.x > 0) return;                                                            \
    energy_out[row] = take ? end_energy[row] : energy[row];                                 \
    acceptance[row] = !finite ? 0.0 : change > 0.0 ? exp(-change) : 1.0;                    \
    accepted[row] = take;                                                                   \
    divergent[row] = !(finite && fabs(change) <= divergence);                               \
}
ACCEPT(accept_f, float)
ACCEPT(accept_d, double)

// FISTA once the product is made, one block per row: z = shrink(v + b, theta) (kind 0), max of that
// and 0 (1), or v as it is (2); momentum starts anew where (y - z)'(z - h) > 0; y and h move on.
// b may be y. How much of z - h is in the next y is told by share.
#define MOMENTUM(NAME, T)                                                                   \
extern "C" __global__ void NAME(T* v, const T* b, T* h, T* y, T* t, T* share, T theta,      \
                                u32 kind, u64 columns) {                                    \
    __shared__ double part[256];                                                            \
    u64 row = blockIdx.x, first = row * columns;                                            \
    double uphill = 0.0, before = t[row];                                                   \
    for (u64 j = first + threadIdx.x; j < first + columns; j += 256) {                      \
        T z = v[j];                                                                         \
        if (kind < 2) {                                                                     \
            z += b[j];                                                                      \
            z = z > theta ? z - theta : kind == 0 && z < -theta ? z + theta                 \
                : z != z ? z : (T)0;  /* NaN stays NaN */                                   \
            v[j] = z;                                                                       \
        }                                                                                   \
        uphill += (double)(y[j] - z) * (double)(z - h[j]);                                  \
    }                                                                                       \
    uphill = block_sum(uphill, part);                                                       \
    before = uphill > 0.0 ? 1.0 : before;                                                   \
    T after = (T)(0.5 * (1.0 + sqrt(1.0 + 4.0 * before * before)));                         \
    T kept = (T)((before - 1.0) / after);                                                   \
    for (u64 j = first + threadIdx.x; j < first + columns; j += 256) {                      \
        T z = v[j];                                                                         \
        y[j] = z + kept * (z - h[j]);                                                       \
        h[j] = z;                                                                           \
    }                                                                                       \
    if (threadIdx.x == 0) { t[row] = after; share[row] = kept; }                            \
}
MOMENTUM(momentum_f, float)
MOMENTUM(momentum_d, double)

// A running mean follows: mean += rate (value - mean).
#define FOLLOW(NAME, T)                                                                     \
extern "C" __global__ void NAME(T* mean, const T* value, T rate, u64 n) {                   \
    u64 i = INDEX;                                                                          \
    if (i < n) mean[i] += rate * (value[i] - mean[i]);                                      \
}
FOLLOW(follow_f, float)
FOLLOW(follow_d, double)

// w -= a b' + c d'.
#define RANK_TWO(NAME, T)                                                                   \
extern "C" __global__ void NAME(T* w, const T* a, const T* b, const T* c, const T* d,       \
                                u64 columns, u64 n) {                                       \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    u64 row = i / columns, column = i % columns;                                            \
    w[i] -= a[row] * b[column] + c[row] * d[column];                                        \
}
RANK_TWO(rank_two_f, float)
RANK_TWO(rank_two_d, double)

// z = r^2 / 2.
#define HALF_SQUARE(NAME, T)                                                                \
extern "C" __global__ void NAME(const T* r, T* z, u64 n) {                                  \
    u64 i = INDEX;                                                                          \
    if (i < n) z[i] = (T)0.5 * r[i] * r[i];                                                 \
}
HALF_SQUARE(half_square_f, float)
HALF_SQUARE(half_square_d, double)

// Squares of the first k columns of a field with its biases, which pools then add up.
#define RESPOND(NAME, T)                                                                    \
extern "C" __global__ void NAME(const T* field, const T* bias, T* squares, u64 k,           \
                                u64 columns, u64 n) {                                       \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T r = field[(i / k) * columns + i % k] + bias[i % k];                                   \
    squares[i] = r * r;                                                                     \
}
RESPOND(respond_f, float)
RESPOND(respond_d, double)

// dF/dz of gating units from their z; out may be z: gamma units level / (1 + z), binary ones
// sigmoid(level - z).
#define SLOPE(NAME, T, EXP)                                                                 \
extern "C" __global__ void NAME(const T* z, const T* level, T* out, u32 binary,             \
                                u64 columns, u64 n) {                                       \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    T own = level[i % columns];                                                             \
    out[i] = binary ? 1 / (1 + EXP(z[i] - own)) : own / (1 + z[i]);                         \
}
SLOPE(slope_f, float, expf)
SLOPE(slope_d, double, exp)

// F of gamma units, sum_j level_j log(1 + z_ij), in double: one block per row.
#define LOG_SUM(NAME, T, LOG1P)                                                             \
extern "C" __global__ void NAME(const T* z, const T* level, double* out, u64 columns) {     \
    __shared__ double part[256];                                                            \
    u64 first = (u64)blockIdx.x * columns;                                                  \
    double sum = 0.0;                                                                       \
    for (u64 j = threadIdx.x; j < columns; j += 256)                                        \
        sum += (double)level[j] * (double)LOG1P(z[first + j]);                              \
    sum = block_sum(sum, part);                                                             \
    if (threadIdx.x == 0) out[blockIdx.x] = sum;                                            \
}
LOG_SUM(log_sum_f, float, log1pf)
LOG_SUM(log_sum_d, double, log1p)

// What a Gaussian adds to an energy, sum_j u_ij (width u_ij / 2 - b_j), in double, by rows.
#define SQUARE_SUM(NAME, T)                                                                 \
extern "C" __global__ void NAME(const T* u, const T* width, const T* b, double* out,        \
                                u64 columns) {                                              \
    __shared__ double part[256];                                                            \
    u64 first = (u64)blockIdx.x * columns;                                                  \
    double sum = 0.0, half = 0.5 * width[0];                                                \
    for (u64 j = threadIdx.x; j < columns; j += 256) {                                      \
        double x = u[first + j];                                                            \
        sum += x * (half * x - b[j]);                                                       \
    }                                                                                       \
    sum = block_sum(sum, part);                                                             \
    if (threadIdx.x == 0) out[blockIdx.x] = sum;                                            \
}
SQUARE_SUM(square_sum_f, float)
SQUARE_SUM(square_sum_d, double)

// The way back of a field with its biases, in place. Of the first k columns r times the slope at
// r^2: 1 / (1 + r^2) (kind 0), sigmoid(gate_j - r^2) (1), or what pools sent back, gate_ij (2); of
// the others tanh.
#define GATE(NAME, T, EXP, TANH)                                                            \
extern "C" __global__ void NAME(T* field, const T* bias, const T* gate, u32 kind, u64 k,    \
                                u64 columns, u64 n) {                                       \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    u64 row = i / columns, j = i % columns;                                                 \
    T r = field[i] + bias[j];                                                               \
    if (j >= k) field[i] = TANH(r);                                                         \
    else if (kind == 0) field[i] = r / (1 + r * r);                                         \
    else if (kind == 1) field[i] = r / (1 + EXP(r * r - gate[j]));                          \
    else field[i] = r * gate[row * k + j];                                                  \
}
GATE(gate_f, float, expf, tanhf)
GATE(gate_d, double, exp, tanh)

// What a Gaussian adds to a gradient: grad += width x - rest, one width, a rest for each column.
#define PULL(NAME, T)                                                                       \
extern "C" __global__ void NAME(T* grad, const T* x, const T* width, const T* rest,         \
                                u64 columns, u64 n) {                                       \
    u64 i = INDEX;                                                                          \
    if (i < n) grad[i] += x[i] * width[0] - rest[i % columns];                              \
}
PULL(pull_f, float)
PULL(pull_d, double)

// Windows of images (.., h, w, c) as rows: element (image, i, j, a, b, channel), 0 beyond the edge.
#define IM2COL(NAME, T)                                                                     \
extern "C" __global__ void NAME(const T* x, T* rows, u32 h, u32 w, u32 c, u32 fh, u32 fw,   \
                                u32 top, u32 left, u32 down, u32 across, u64 n) {           \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    u64 rest = i;                                                                           \
    u32 channel = rest % c; rest /= c;                                                      \
    u32 b = rest % fw; rest /= fw;                                                          \
    u32 a = rest % fh; rest /= fh;                                                          \
    u32 col = rest % across + b; rest /= across;                                            \
    u32 row = rest % down + a; rest /= down;                                                \
    bool inside = row >= top && row < h + top && col >= left && col < w + left;             \
    rows[i] = inside ? x[((rest * h + row - top) * w + col - left) * c + channel] : (T)0;   \
}
IM2COL(im2col_f, float)
IM2COL(im2col_d, double)

// The adjoint, of windows that begin every sh rows and sw columns: each place adds up the windows
// that it lies in, so that no two threads write to one place.
#define COL2IM(NAME, T)                                                                     \
extern "C" __global__ void NAME(const T* rows, T* x, u32 h, u32 w, u32 c, u32 fh, u32 fw,   \
                                u32 sh, u32 sw, u32 down, u32 across, u64 n) {              \
    u64 i = INDEX;                                                                          \
    if (i >= n) return;                                                                     \
    u64 rest = i;                                                                           \
    u32 channel = rest % c; rest /= c;                                                      \
    u32 col = rest % w; rest /= w;                                                          \
    u32 row = rest % h; rest /= h;                                                          \
    T sum = 0;                                                                              \
    for (u32 a = 0; a < fh && a <= row; ++a) {                                              \
        u32 p = (row - a) / sh;                                                             \
        if ((row - a) % sh || p >= down) continue;                                          \
        for (u32 b = 0; b < fw && b <= col; ++b) {                                          \
            u32 q = (col - b) / sw;                                                         \
            if ((col - b) % sw || q >= across) continue;                                    \
            sum += rows[((((rest * down + p) * across + q) * fh + a) * fw + b) * c + channel]; \
        }                                                                                   \
    }                                                                                       \
    x[i] = sum;                                                                             \
}
COL2IM(col2im_f, float)
COL2IM(col2im_d, double)
