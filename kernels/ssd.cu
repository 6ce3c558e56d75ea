/* ssd.cu - the SSD scan forward: a block of threads goes through its sequence tile by tile,
 *   y = ((C B^T) o M o dt) X + e o (C S^T) + D x,   S = e_last S + (w o dt o X)^T B
 * with S in registers. */
#include "ssd_tile.cuh"

namespace ssd {

/* Shared memory: STAGES times x [T,PB], B [T,NB], C [T,NB]; then the scores [T,T] and S [PB,NB]. */
template <class C> struct Room {
  typedef typename C::E E;
  typedef Matrix<E, C::PB> Channels;
  typedef Matrix<E, C::NB> States;
  typedef Matrix<E, C::T < 16 ? 16 : C::T> Scores;
  enum { X = 0, B = Channels::bytes(C::T), Cc = B + States::bytes(C::T), STAGE = Cc + States::bytes(C::T) };
  enum { W = C::STAGES * STAGE, S = W + Scores::bytes(C::T), BYTES = S + States::bytes(C::PB) };
};

/* OUT: y and the last state; else the states before each tile, in E, to `kept`. */
template <class C, bool OUT>
static __global__ void __launch_bounds__(THREADS, C::FORWARD) forward(Inputs<typename C::E> in, typename C::E *y, typename C::W *state, typename C::E *kept) {
  typedef typename C::E E;
  typedef typename C::W W;
  typedef Room<C> R;
  typedef Tiling<W, C::T, C::T> TT;
  typedef Tiling<W, C::T, C::PB> TP;
  typedef Tiling<W, C::PB, C::NB> PN;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Decays<E, C::T> decays[2];
  char *room = (char *)shared;
  const Place at(in.s, C::PB);
  const int N = (int)in.s.N, tiles = (int)((in.s.L + C::T - 1) / C::T), warp = threadIdx.x / 32;
  const E *x = in.x + at.row * in.s.ldx + at.h * in.s.P + at.first;
  const E *b = in.b + at.row * in.s.ldb + at.group * N, *c = in.c + at.row * in.s.ldc + at.group * N;
  const typename R::Scores scores = {room + R::W};
  const typename R::States states = {room + R::S};
  const W D = OUT && in.D ? in.D[at.h] : W(0);
  const bool even = in.s.P % 2 == 0;
  const int ldy = (int)(in.s.H * in.s.P);
  if (OUT) y += at.row * ldy + at.h * in.s.P + at.first;
  else kept += (int64_t)blockIdx.x * tiles * C::PB * C::NB;
  auto stage = [&](int tile) {
    char *to = room + tile % C::STAGES * R::STAGE;
    const int64_t t = (int64_t)tile * C::T;
    const int live = in.s.L - t < C::T ? (int)(in.s.L - t) : C::T;
    typename R::Channels{to + R::X}.template stage<C::T>(x + t * in.s.ldx, in.s.ldx, live, at.live, in.aligned);
    typename R::States{to + R::B}.template stage<C::T>(b + t * in.s.ldb, in.s.ldb, live, N, in.aligned);
    if (OUT) typename R::States{to + R::Cc}.template stage<C::T>(c + t * in.s.ldc, in.s.ldc, live, N, in.aligned);
  };
  typename PN::Sum S;
  Ahead<W, C::T> ahead;
  load_state<PN>(S, in, at, in.start);
  stage(0);
  copies_end();
  if (warp == 0) {
    ahead.load(in, at, 0);
    make_decays(ahead, in.s.log, decays[0]);
  }
  for (int tile = 0; tile < tiles; tile++) {
    const Decays<E, C::T> &d = decays[tile % 2];
    const bool more = tile + 1 < tiles;
    if (C::STAGES > 1) {
      if (more) stage(tile + 1);
      copies_end();
    }
    copies_landed<C::STAGES - 1>();
    __syncthreads();
    if (warp == 0 && more) ahead.load(in, at, (int64_t)(tile + 1) * C::T);
    char *from = room + tile % C::STAGES * R::STAGE;
    const typename R::Channels mx = {from + R::X};
    const typename R::States mb = {from + R::B}, mc = {from + R::Cc};
    if (OUT) {
      typename TT::Sum w;
      TT::clear(w);
      multiply<TT, C::NB, true>(w, rows(mc), rows(mb));
      const Mask<TT, Decays<E, C::T>> mask(d);
      TT::each([&](int m, int half, int n) {
        const int j = TT::column(n);
        scores.put(TT::row(m, half), j, w[m][n][2 * half] * mask.at(m, half, n, 0) * d.step[j],
                   w[m][n][2 * half + 1] * mask.at(m, half, n, 1) * d.step[j + 1]);
      });
      put_all<PN>(S, states);
      __syncthreads();
      typename TP::Sum o, past;
      TP::clear(o);
      TP::clear(past);
      multiply<TP, C::T>(o, rows(scores), turned(mx));
      multiply<TP, C::NB>(past, rows(mc), rows(states));
      E *to = y + (int64_t)tile * C::T * ldy;
      const int live = in.s.L - (int64_t)tile * C::T < C::T ? (int)in.s.L - tile * C::T : C::T;
      TP::each([&](int m, int half, int n) {
        const int i = TP::row(m, half), p = TP::column(n);
        if (i >= live) return;
        W v[2];
        mx.get_pair(i, p, v);
#pragma unroll
        for (int k = 0; k < 2; k++) v[k] = o[m][n][2 * half + k] + d.enter[i] * past[m][n][2 * half + k] + D * v[k];
        write_pair(to + i * ldy, p, at.live, even, v[0], v[1]);
      });
    } else {
      E *to = kept + (int64_t)tile * C::PB * C::NB;
      PN::each([&](int m, int half, int n) {
        write_pair(to + PN::row(m, half) * C::NB, PN::column(n), C::NB, true, S[m][n][2 * half], S[m][n][2 * half + 1]);
      });
    }
    PN::each([&](int m, int half, int n) { S[m][n][2 * half] *= d.keep, S[m][n][2 * half + 1] *= d.keep; });
    multiply<PN, C::T>(S, turned(mx, d.carries), turned(mb));
    if (warp == 0 && more) make_decays(ahead, in.s.log, decays[(tile + 1) % 2]);
    __syncthreads();
    if (C::STAGES == 1 && more) {
      stage(tile + 1);
      copies_end();
    }
  }
  if (OUT) store_state<PN>(S, in, at, state);
}

template <class C, bool OUT>
static void launch(CabStream *s, const Inputs<typename C::E> &in, typename C::E *y, typename C::W *state, typename C::E *kept) {
  const int64_t blocks = in.s.B * in.s.H * ((in.s.P + C::PB - 1) / C::PB);
  if (blocks <= 0 || !allow(s, forward<C, OUT>, Room<C>::BYTES)) return;
  forward<C, OUT><<<(unsigned)blocks, THREADS, Room<C>::BYTES, s->stream>>>(in, y, state, kept);
}

} // namespace ssd

template <class E>
static void ssd_forward(CabStream *s, const SsdShape *shape, const void *x, const void *a, const void *b, const void *c, const void *dt,
                        const void *D, const void *start, const int32_t *segment, void *y, void *state, void *) {
  const ssd::Inputs<E> in = {*shape, (const E *)x, (const E *)a, (const E *)b, (const E *)c, (const E *)dt, (const Wide<E> *)D,
                             (const Wide<E> *)start, segment, ssd::reads_packs<E>(shape, x, b, c)};
  ssd::with_cut(E(), shape->N, [&](auto cut) {
    ssd::launch<decltype(cut), true>(s, in, (E *)y, (Wide<E> *)state, nullptr);
  });
}

template <class E>
void ssd_states(CabStream *s, const SsdShape *shape, const void *x, const void *a, const void *b, const void *dt, const void *start,
                       const int32_t *segment, void *kept) {
  const ssd::Inputs<E> in = {*shape, (const E *)x, (const E *)a, (const E *)b, nullptr, (const E *)dt, nullptr, (const Wide<E> *)start,
                             segment, ssd::reads_packs<E>(shape, x, b, b)};
  ssd::with_cut(E(), shape->N, [&](auto cut) { ssd::launch<decltype(cut), false>(s, in, nullptr, nullptr, (E *)kept); });
}

template void ssd_states<float>(CabStream *, const SsdShape *, const void *, const void *, const void *, const void *, const void *, const int32_t *, void *);
template void ssd_states<double>(CabStream *, const SsdShape *, const void *, const void *, const void *, const void *, const void *, const int32_t *, void *);
template void ssd_states<bf16>(CabStream *, const SsdShape *, const void *, const void *, const void *, const void *, const void *, const int32_t *, void *);

EXPORT(ssd_forward)
