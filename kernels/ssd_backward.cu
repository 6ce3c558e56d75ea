/* ssd_backward.cu - gradients of the SSD scan: the tiles of ssd.cu from the last to the first, R = gradient of the state after a
 * tile in registers. The states before each tile are computed again first. With Z = (gY X^T) o dt o M:
 *   gV = (C B^T o M)^T gY + w o (B R^T)            gx = dt gV + D gY,  gdt_j = x_j . gV_j
 *   gC = Z B + e o (gY S)                          gB = Z^T C + w dt o (X R)
 *   gradient of c_i: row sums of Z o C B^T less its column sums + e_i C_i . (gY_i S) - u_i, u_j = w_j dt_j x_j . (B_j R^T);
 *   of c_last also + e_last <S, R> + sum u;        gl_t = sum of these from t on;   R = e_last R + (e o gY)^T C
 * A head that needs several blocks of channels, or a group of several heads, writes parts of gB, gC, ga, gdt; they are added in order. */
#include "ssd_tile.cuh"

namespace ssd {

/* Where gradients go: parts where they are not NULL, else the gradient itself. */
template <class E> struct Gradients {
  const E *y;
  const E *kept;
  Wide<E> *carry;
  E *x, *a, *b, *c, *dt;
  E *a_parts, *dt_parts, *b_parts, *c_parts;
  Wide<E> *D_parts;
};

/* Shared memory: STAGES times x, gy [T,PB], B, C [T,NB], S [PB,NB]; then W, Z [T,T] and R [PB,NB]. */
template <class C> struct BackwardRoom {
  typedef typename C::E E;
  typedef Matrix<E, C::PB> Channels;
  typedef Matrix<E, C::NB> States;
  typedef Matrix<E, C::T> Scores;
  enum { X = 0, Y = Channels::bytes(C::T), B = 2 * Y, Cc = B + States::bytes(C::T), S = Cc + States::bytes(C::T) };
  enum { STAGE = S + States::bytes(C::PB), W = C::STAGES * STAGE, Z = W + Scores::bytes(C::T), R = Z + Scores::bytes(C::T) };
  enum { BYTES = R + States::bytes(C::PB) };
};

/* Sums of a tile by token, a part from each column of warps (row of warps: `column`); all of them added by finish(). */
template <class W, int T> struct Sums {
  W row[WARPS][T], column[2][T], state[WARPS], u[WARPS][T], dt[WARPS][T], c[WARPS][T];
};
template <class W, int T> __device__ __forceinline__ W added(const W (*parts)[T], int count, int t) {
  W sum = 0;
  for (int k = 0; k < count; k++) sum += parts[k][t];
  return sum;
}

/* Of c_t to ga, and gdt, by one warp. rows, channels, states: parts of the sums over tokens, channels and states. */
template <class C>
static __device__ void finish(const Inputs<typename C::E> &in, const Gradients<typename C::E> &g, const Place &at, int64_t first,
                              const Decays<typename C::E, C::T> &d, const Sums<typename C::W, C::T> &sums, int rows, int columns,
                              int channels, int states) {
  typedef typename C::E E;
  typedef typename C::W W;
  enum { EACH = (C::T + 31) / 32 };
  const int lane = threadIdx.x % 32;
  double of_c[EACH], total = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int t = EACH * lane + i;
    of_c[i] = 0;
    if (t >= C::T) continue;
    const double u = (double)(d.step[t] * added(sums.u, channels, t));
    of_c[i] = (double)added(sums.row, rows, t) - (double)added(sums.column, columns, t) + (double)(d.enter[t] * added(sums.c, states, t)) - u;
    total += u;
  }
  total = warp_sum(total);
  for (int w = 0; w < WARPS; w++) total += (double)(d.keep * sums.state[w]);
  double after = 0; /* sum of the lanes behind this one */
#pragma unroll
  for (int i = 0; i < EACH; i++) after += of_c[i];
  const double own = after;
#pragma unroll
  for (int k = 1; k < 32; k *= 2) {
    const double other = __shfl_down_sync(0xffffffffu, after, k);
    if (lane + k < 32) after += other;
  }
  total += after - own;
#pragma unroll
  for (int i = EACH - 1; i >= 0; i--) {
    const int t = EACH * lane + i;
    total += of_c[i];
    if (t >= C::T || first + t >= in.s.L) continue;
    const bool begins = d.part[t] != (t > 0 ? d.part[t - 1] : 0);
    const W l = begins ? W(0) : (W)total, ga = in.s.log ? l : -sigmoid(d.value[t]) * l;
    const int64_t cell = (at.row + first + t) * in.s.H + at.h, all = in.s.B * in.s.L * in.s.H;
    const W gdt = g.dt ? added(sums.dt, channels, t) : W(0);
    if (g.a_parts) g.a_parts[at.part * all + cell] = narrow<E>(ga);
    else g.a[cell] = narrow<E>(ga);
    if (g.dt && g.dt_parts) g.dt_parts[at.part * all + cell] = narrow<E>(gdt);
    else if (g.dt) g.dt[cell] = narrow<E>(gdt);
  }
}

/* The block's first row of gB or gC, or of its part of them. */
template <class E> __device__ __forceinline__ E *states_of(const SsdShape &s, const Place &at, E *to, E *parts) {
  E *from = parts ? parts + (at.member * at.parts + at.part) * s.B * s.L * s.G * s.N : to;
  return from + (at.row * s.G + at.group) * s.N;
}

template <class C> static __global__ void __launch_bounds__(THREADS, C::BACKWARD) backward(Inputs<typename C::E> in, Gradients<typename C::E> g) {
  typedef typename C::E E;
  typedef typename C::W W;
  typedef BackwardRoom<C> R;
  typedef Tiling<W, C::T, C::T> TT;
  typedef Tiling<W, C::T, C::PB> TP;
  typedef Tiling<W, C::T, C::NB> TN;
  typedef Tiling<W, C::PB, C::NB> PN;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Decays<E, C::T> decays[2];
  __shared__ Sums<W, C::T> sums;
  char *room = (char *)shared;
  const Place at(in.s, C::PB);
  const int N = (int)in.s.N, tiles = (int)((in.s.L + C::T - 1) / C::T), warp = threadIdx.x / 32;
  const int64_t channel = at.h * in.s.P + at.first;
  const int E_ = (int)(in.s.H * in.s.P), S_ = (int)(in.s.G * in.s.N);
  const E *x = in.x + at.row * in.s.ldx + channel, *gy = g.y + at.row * E_ + channel;
  const E *b = in.b + at.row * in.s.ldb + at.group * N, *c = in.c + at.row * in.s.ldc + at.group * N;
  const typename R::Scores mw = {room + R::W}, mz = {room + R::Z};
  const typename R::States mr = {room + R::R};
  const W D = in.D ? in.D[at.h] : W(0);
  const bool even = in.s.P % 2 == 0, even_states = N % 2 == 0;
  E *gx = g.x + at.row * E_ + channel, *gb = states_of(in.s, at, g.b, g.b_parts), *gc = states_of(in.s, at, g.c, g.c_parts);
  const E *kept = g.kept + (int64_t)blockIdx.x * tiles * C::PB * C::NB;
  auto stage = [&](int tile) {
    char *to = room + tile % C::STAGES * R::STAGE;
    const int64_t t = (int64_t)tile * C::T;
    const int live = in.s.L - t < C::T ? (int)(in.s.L - t) : C::T;
    typename R::Channels{to + R::X}.template stage<C::T>(x + t * in.s.ldx, in.s.ldx, live, at.live, in.aligned);
    typename R::Channels{to + R::Y}.template stage<C::T>(gy + t * E_, E_, live, at.live, in.aligned);
    typename R::States{to + R::B}.template stage<C::T>(b + t * in.s.ldb, in.s.ldb, live, N, in.aligned);
    typename R::States{to + R::Cc}.template stage<C::T>(c + t * in.s.ldc, in.s.ldc, live, N, in.aligned);
    typename R::States{to + R::S}.template stage<C::PB>(kept + (int64_t)tile * C::PB * C::NB, C::NB, C::PB, C::NB, true);
  };
  typename PN::Sum carry;
  Ahead<W, C::T> ahead;
  W own = 0; /* gD */
  load_state<PN>(carry, in, at, (const W *)g.carry);
  if (tiles > 0) stage(tiles - 1);
  copies_end();
  if (warp == 0 && tiles > 0) {
    ahead.load(in, at, (int64_t)(tiles - 1) * C::T);
    make_decays(ahead, in.s.log, decays[(tiles - 1) & 1]);
  }
  for (int tile = tiles - 1; tile >= 0; tile--) {
    const Decays<E, C::T> &d = decays[tile & 1];
    if (C::STAGES > 1) {
      if (tile > 0) stage(tile - 1);
      copies_end();
    }
    copies_landed<C::STAGES - 1>();
    __syncthreads();
    if (warp == 0 && tile > 0) ahead.load(in, at, (int64_t)(tile - 1) * C::T);
    char *from = room + tile % C::STAGES * R::STAGE;
    const typename R::Channels mx = {from + R::X}, my = {from + R::Y};
    const typename R::States mb = {from + R::B}, mc = {from + R::Cc}, ms = {from + R::S};
    const int64_t first = (int64_t)tile * C::T;
    const int tokens = in.s.L - first < C::T ? (int)(in.s.L - first) : C::T;
    { /* W = C B^T o M, Z; sums of Z o C B^T */
      typename TT::Sum w, z;
      TT::clear(w);
      TT::clear(z);
      multiply<TT, C::NB, true>(w, rows(mc), rows(mb));
      multiply<TT, C::PB, true>(z, rows(my), rows(mx));
      const Mask<TT, Decays<E, C::T>> mask(d);
      TT::each([&](int m, int half, int n) {
        const int i = TT::row(m, half), j = TT::column(n);
        W decayed[2], own_z[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
          W &cb = w[m][n][2 * half + k], &gx = z[m][n][2 * half + k];
          const W between = mask.at(m, half, n, k);
          decayed[k] = cb * between, own_z[k] = gx * between * d.step[j + k];
          gx = own_z[k] * cb;
        }
        mw.put(i, j, decayed[0], decayed[1]);
        mz.put(i, j, own_z[0], own_z[1]);
      });
      row_sums<TT, C::T>(sums.row, [&](int m, int half) {
        W sum = 0;
#pragma unroll
        for (int n = 0; n < 2 * TT::N; n++) sum += z[m][n][2 * half] + z[m][n][2 * half + 1];
        return sum;
      });
      if (TT::mine())
#pragma unroll
        for (int n = 0; n < 2 * TT::N; n++)
#pragma unroll
          for (int k = 0; k < 2; k++) {
            W sum = 0;
#pragma unroll
            for (int m = 0; m < TT::M; m++) sum += z[m][n][k] + z[m][n][2 + k];
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
            if (TT::lane() < 4) sums.column[TT::wr()][TT::column(n) + k] = sum;
          }
    }
    put_all<PN>(carry, mr);
    __syncthreads();
    { /* gx, gdt, u, gD */
      typename TP::Sum v, past;
      W u[TP::M][2] = {}, dt[TP::M][2] = {};
      TP::clear(v);
      TP::clear(past);
      multiply<TP, C::T>(v, turned(mw), turned(my));
      multiply<TP, C::NB>(past, rows(mb), rows(mr));
      TP::each([&](int m, int half, int n) {
        const int j = TP::row(m, half), p = TP::column(n);
        W to[2], value[2], go[2];
        mx.get_pair(j, p, value);
        my.get_pair(j, p, go);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const W late = d.leave[j] * past[m][n][2 * half + k], gv = v[m][n][2 * half + k] + late;
          u[m][half] += value[k] * late, dt[m][half] += value[k] * gv, own += value[k] * go[k];
          to[k] = d.step[j] * gv + D * go[k];
        }
        if (j < tokens) write_pair(gx + first * E_ + j * E_, p, at.live, even, to[0], to[1]);
      });
      row_sums<TP, C::T>(sums.u, [&](int m, int half) { return u[m][half]; });
      row_sums<TP, C::T>(sums.dt, [&](int m, int half) { return dt[m][half]; });
    }
    { /* gC */
      typename TN::Sum o;
      W dots[TN::M][2] = {};
      TN::clear(o);
      multiply<TN, C::PB>(o, rows(my), turned(ms));
      TN::each([&](int m, int half, int n) {
        const int i = TN::row(m, half);
        W value[2];
        mc.get_pair(i, TN::column(n), value);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          W &v = o[m][n][2 * half + k];
          dots[m][half] += value[k] * v;
          v *= d.enter[i];
        }
      });
      row_sums<TN, C::T>(sums.c, [&](int m, int half) { return dots[m][half]; });
      multiply<TN, C::T>(o, rows(mz), turned(mb));
      TN::each([&](int m, int half, int n) {
        const int i = TN::row(m, half);
        if (i < tokens) write_pair(gc + first * S_ + i * S_, TN::column(n), N, even_states, o[m][n][2 * half], o[m][n][2 * half + 1]);
      });
    }
    { /* gB */
      typename TN::Sum o;
      TN::clear(o);
      multiply<TN, C::PB>(o, rows(mx), turned(mr));
      TN::each([&](int m, int half, int n) {
        const W factor = d.carry[TN::row(m, half)];
        o[m][n][2 * half] *= factor, o[m][n][2 * half + 1] *= factor;
      });
      multiply<TN, C::T>(o, turned(mz), turned(mc));
      TN::each([&](int m, int half, int n) {
        const int j = TN::row(m, half);
        if (j < tokens) write_pair(gb + first * S_ + j * S_, TN::column(n), N, even_states, o[m][n][2 * half], o[m][n][2 * half + 1]);
      });
    }
    W dot = 0; /* <S, R> */
    PN::each([&](int m, int half, int n) {
      W value[2];
      ms.get_pair(PN::row(m, half), PN::column(n), value);
#pragma unroll
      for (int k = 0; k < 2; k++) {
        W &r = carry[m][n][2 * half + k];
        dot += value[k] * r;
        r *= d.keep;
      }
    });
    dot = warp_sum(dot);
    if (PN::lane() == 0) sums.state[warp] = dot;
    multiply<PN, C::T>(carry, turned(my, d.enters), turned(mc));
    if (warp == 0 && tile > 0) make_decays(ahead, in.s.log, decays[(tile - 1) & 1]);
    __syncthreads();
    if (warp == 1) finish<C>(in, g, at, first, d, sums, TT::ACTIVE, TT::WR, TP::ACTIVE, TN::ACTIVE);
    if (C::STAGES == 1 && tile > 0) {
      stage(tile - 1);
      copies_end();
    }
  }
  store_state<PN>(carry, in, at, g.carry);
  own = block_sum(own);
  if (g.D_parts && threadIdx.x == 0) g.D_parts[(at.b * at.parts + at.part) * in.s.H + at.h] = own;
}

template <class E> static void add_up(CabStream *s, int64_t n, int64_t parts, const E *from, E *to) {
  constexpr int V = 16 / sizeof(E);
  if (!from || !to || n <= 0) return;
  const bool vector = n % V == 0 && packs<E, V>(from, V) && packs<E, V>(to, V);
  const int64_t blocks = (n / (vector ? V : 1) + 255) / 256;
  (vector ? add_parts<E, V> : add_parts<E, 1>)<<<(unsigned)(blocks < 8192 ? blocks : 8192), 256, 0, s->stream>>>(n, parts, from, to);
}

/* One call: its scratch, the kernels. */
template <class C>
static void run_backward(CabStream *s, const Inputs<typename C::E> &in, Gradients<typename C::E> g, const void *start, typename C::W *gD) {
  typedef typename C::E E;
  typedef typename C::W W;
  const SsdShape &p = in.s;
  const int64_t cuts = (p.P + C::PB - 1) / C::PB, parts = cuts * (p.H / p.G), cells = p.B * p.L * p.H, states = p.B * p.L * p.G * p.N;
  const int64_t blocks = p.B * p.H * cuts;
  if (blocks <= 0) return add_up<W>(s, p.H, 0, gD, gD);
  Scratch kept(s, kept_bytes<C>(&p)), heads(s, cuts > 1 ? (size_t)(2 * cuts * cells) * sizeof(E) : 0);
  Scratch groups(s, parts > 1 ? (size_t)(2 * parts * states) * sizeof(E) : 0), skips(s, (size_t)(p.B * cuts * p.H) * sizeof(W));
  if (s->failed) return;
  if (cuts > 1) g.a_parts = (E *)heads.data, g.dt_parts = g.dt ? g.a_parts + cuts * cells : nullptr;
  if (parts > 1) g.b_parts = (E *)groups.data, g.c_parts = g.b_parts + parts * states;
  g.D_parts = (W *)skips.data, g.kept = (const E *)kept.data;
  ssd_states<E>(s, &p, in.x, in.a, in.b, in.dt, start, in.segment, kept.data);
  if (!allow(s, backward<C>, BackwardRoom<C>::BYTES)) return;
  backward<C><<<(unsigned)blocks, THREADS, BackwardRoom<C>::BYTES, s->stream>>>(in, g);
  add_up<E>(s, cells, cuts, g.a_parts, g.a);
  add_up<E>(s, cells, cuts, g.dt_parts, g.dt);
  add_up<E>(s, states, parts, g.b_parts, g.b);
  add_up<E>(s, states, parts, g.c_parts, g.c);
  add_up<W>(s, p.H, p.B * cuts, g.D_parts, gD);
}

} // namespace ssd

template <class E>
static void ssd_backward(CabStream *s, const SsdShape *shape, const void *x, const void *a, const void *b, const void *c, const void *dt,
                         const void *D, const void *start, const int32_t *segment, const void *, const void *gy, void *carry, void *gx,
                         void *ga, void *gb, void *gc, void *gdt, void *gD, void *) {
  const bool aligned = ssd::reads_packs<E>(shape, x, b, c) && packs<E, (int)(16 / sizeof(E))>(gy, shape->H * shape->P);
  const ssd::Inputs<E> in = {*shape, (const E *)x, (const E *)a, (const E *)b, (const E *)c, (const E *)dt, (const Wide<E> *)D, nullptr,
                             segment, aligned};
  const ssd::Gradients<E> g = {(const E *)gy, nullptr, (Wide<E> *)carry, (E *)gx, (E *)ga, (E *)gb, (E *)gc, (E *)gdt};
  ssd::with_cut(E(), shape->N, [&](auto cut) { ssd::run_backward<decltype(cut)>(s, in, g, start, (Wide<E> *)gD); });
}

EXPORT(ssd_backward)
