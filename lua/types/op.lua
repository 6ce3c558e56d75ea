---@meta
--- Made by `build/cab run tests/docs_tables.lua types > lua/types/op.lua`. Types for editors; not loaded by the program.
-- Over 500 lines because it has a line for each key and argument.
-- luacheck: ignore

---@class cab.op
local op = {}

--- y = |x|, gradient 0 at 0
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.abs(x) end

--- y = a + b, broadcast
--- `a[&] b[&] -> y[&]`
---@param a cab.Tensor [&]
---@param b cab.Tensor [&]
---@return cab.Tensor y [&]
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.add(a, b) end

--- y = scale x + shift
--- `x[*] | scale=1 shift=0 -> y[*]`
---@param x cab.Tensor [*]
---@param options? {scale?: number, shift?: number}
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor, scale?: number, shift?: number}): cab.Tensor
function op.affine(x, options) end

--- y = softmax(scale q k^T) v per head; scale 0: 1/sqrt(D/heads) (arXiv 1706.03762); map is empty unless asked for; place (of op.places): documents of a row do not see each other
--- `q~[B,L,D] k~[B,L,D] v~[B,L,D] place:i32[B,L]? | heads=1 causal=false map=false scale=0 -> y[B,L,D] map[B,H,K,K] ~lse^[B,H,L]`
---@param q cab.Tensor [B,L,D]
---@param k cab.Tensor [B,L,D]
---@param v cab.Tensor [B,L,D]
---@param place? cab.Tensor i32[B,L]
---@param options? {heads?: number, causal?: boolean, map?: boolean, scale?: number}
---@return cab.Tensor y [B,L,D]
---@return cab.Tensor map [B,H,K,K]
---@overload fun(named: {q: cab.Tensor, k: cab.Tensor, v: cab.Tensor, place?: cab.Tensor, heads?: number, causal?: boolean, map?: boolean, scale?: number}): cab.Tensor
function op.attention(q, k, v, place, options) end

--- mse(w2 silu(w1 B + b1) + b2, map(k)) and the same of C and q, y their sum (arXiv 2510.19266); k, q in the teacher's token order, first, second: the student's class tokens, 0: none
--- `B~[B,L,N] B_w1^[H,N] B_b1^[H] B_w2^[D,H] B_b2^[D] k~[B,T,D] C~[B,L,N]? C_w1^[H,N]? C_b1^[H]? C_w2^[D,H]? C_b2^[D]? q~[B,T,D]? k_mean^[D]? k_deviation^[D]? q_mean^[D]? q_deviation^[D]? | map=none|relu|exp|standard first=1 second=0 -> y^[] mse^[M] ~gx[G,B,L,N] ~gw^[P]`
---@param B cab.Tensor [B,L,N]
---@param B_w1 cab.Tensor [H,N]
---@param B_b1 cab.Tensor [H]
---@param B_w2 cab.Tensor [D,H]
---@param B_b2 cab.Tensor [D]
---@param k cab.Tensor [B,T,D]
---@param C? cab.Tensor [B,L,N]
---@param C_w1? cab.Tensor [H,N]
---@param C_b1? cab.Tensor [H]
---@param C_w2? cab.Tensor [D,H]
---@param C_b2? cab.Tensor [D]
---@param q? cab.Tensor [B,T,D]
---@param k_mean? cab.Tensor [D]
---@param k_deviation? cab.Tensor [D]
---@param q_mean? cab.Tensor [D]
---@param q_deviation? cab.Tensor [D]
---@param options? {map?: "none"|"relu"|"exp"|"standard", first?: number, second?: number}
---@return cab.Tensor y []
---@return cab.Tensor mse [M]
---@overload fun(named: {B: cab.Tensor, B_w1: cab.Tensor, B_b1: cab.Tensor, B_w2: cab.Tensor, B_b2: cab.Tensor, k: cab.Tensor, C?: cab.Tensor, C_w1?: cab.Tensor, C_b1?: cab.Tensor, C_w2?: cab.Tensor, C_b2?: cab.Tensor, q?: cab.Tensor, k_mean?: cab.Tensor, k_deviation?: cab.Tensor, q_mean?: cab.Tensor, q_deviation?: cab.Tensor, map?: "none"|"relu"|"exp"|"standard", first?: number, second?: number}): cab.Tensor
function op.bridge(B, B_w1, B_b1, B_w2, B_b2, k, C, C_w1, C_b1, C_w2, C_b2, q, k_mean, k_deviation, q_mean, q_deviation, options) end

--- y = x in another real dtype; so is the gradient
--- `x[*] | to=f32|f64|bf16 -> y[*]`
---@param x cab.Tensor [*]
---@param options? {to?: "f32"|"f64"|"bf16"}
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor, to?: "f32"|"f64"|"bf16"}): cab.Tensor
function op.cast(x, options) end

--- causal depthwise convolution over tokens and SiLU (arXiv 2312.00752, figure 3); reverse: anti-causal; place (of op.places): documents of a row do not reach each other
--- `x~[B,L,E] w^[E,1,W] b^[E]? place:i32[B,L]? | silu=true reverse=false -> y[B,L,E]`
---@param x cab.Tensor [B,L,E]
---@param w cab.Tensor [E,1,W]
---@param b? cab.Tensor [E]
---@param place? cab.Tensor i32[B,L]
---@param options? {silu?: boolean, reverse?: boolean}
---@return cab.Tensor y [B,L,E]
---@overload fun(named: {x: cab.Tensor, w: cab.Tensor, b?: cab.Tensor, place?: cab.Tensor, silu?: boolean, reverse?: boolean}): cab.Tensor
function op.conv1d(x, w, b, place, options) end

--- mean over rows of 1 - a.b / (|a| |b|)
--- `a[*,D] b[*,D] -> y^[]`
---@param a cab.Tensor [*,D]
---@param b cab.Tensor [*,D]
---@return cab.Tensor y []
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.cosine(a, b) end

--- mean of -sum target log softmax(x); label -1 is left out (smoothing: arXiv 1512.00567, section 7)
--- `x[R,C] labels:i32[R]? target^[R,C]? | smoothing=0 -> y^[] ~lse^[R]`
---@param x cab.Tensor [R,C]
---@param labels? cab.Tensor i32[R]
---@param target? cab.Tensor [R,C]
---@param options? {smoothing?: number}
---@return cab.Tensor y []
---@overload fun(named: {x: cab.Tensor, labels?: cab.Tensor, target?: cab.Tensor, smoothing?: number}): cab.Tensor
function op.cross_entropy(x, labels, target, options) end

--- y = a / b elementwise, broadcast
--- `a[&] b[&] -> y[&]`
---@param a cab.Tensor [&]
---@param b cab.Tensor [&]
---@return cab.Tensor y [&]
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.div(a, b) end

--- y[i] = w[ids[i]]
--- `ids:i32[*] w[V,D] -> y[*,D]`
---@param ids cab.Tensor i32[*]
---@param w cab.Tensor [V,D]
---@return cab.Tensor y [*,D]
---@overload fun(named: {ids: cab.Tensor, w: cab.Tensor}): cab.Tensor
function op.embedding(ids, w) end

--- y = e^x
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.exp(x) end

--- mean over matrices of |a - b|_F; gradient 0 at a = b
--- `a[*,M,N] b[*,M,N] -> y^[]`
---@param a cab.Tensor [*,M,N]
---@param b cab.Tensor [*,M,N]
---@return cab.Tensor y []
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.frobenius(a, b) end

--- y = scale (a + b) silu(z): joins both scan directions (arXiv 2401.09417, alg. 1)
--- `a[*,E] z~[*,E] b[*,E]? | scale=1 -> y[*,E]`
---@param a cab.Tensor [*,E]
---@param z cab.Tensor [*,E]
---@param b? cab.Tensor [*,E]
---@param options? {scale?: number}
---@return cab.Tensor y [*,E]
---@overload fun(named: {a: cab.Tensor, z: cab.Tensor, b?: cab.Tensor, scale?: number}): cab.Tensor
function op.gate(a, z, b, options) end

--- y = x Phi(x), exact or by tanh (arXiv 1606.08415)
--- `x[*] | approx=none|tanh -> y[*]`
---@param x cab.Tensor [*]
---@param options? {approx?: "none"|"tanh"}
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor, approx?: "none"|"tanh"}): cab.Tensor
function op.gelu(x, options) end

--- of logits x w^T + b, `rows` tokens at a time (0: as the device likes): ce times cross-entropy with the next id of the segment + kl times a divergence from the teacher's tx tw^T + tb or its largest logits; parts: both, unweighted; targets: what divides the sum of cross-entropies in place of how many there are, where these rows are part of a batch (arXiv 1503.02531; generalised JSD: 2306.13649)
--- `x~[B,L,D] w^[V,D] b^[V]? ids:i32[B,L] segment:i32[B,L]? tx~[B,L,E]? tw^[U,E]? tb^[U]? top:i32[B,L,K]? top_logits[B,L,K]? targets^[1]? | ce=1 kl=0 divergence=forward|cross|reverse|jsd temperature=1 smoothing=0 vocab=0 rows=0 -> y^[] parts^[2] ~gx[R,D] ~gw^[S,D] ~gb^[S]`
---@param x cab.Tensor [B,L,D]
---@param w cab.Tensor [V,D]
---@param b? cab.Tensor [V]
---@param ids cab.Tensor i32[B,L]
---@param segment? cab.Tensor i32[B,L]
---@param tx? cab.Tensor [B,L,E]
---@param tw? cab.Tensor [U,E]
---@param tb? cab.Tensor [U]
---@param top? cab.Tensor i32[B,L,K]
---@param top_logits? cab.Tensor [B,L,K]
---@param targets? cab.Tensor [1]
---@param options? {ce?: number, kl?: number, divergence?: "forward"|"cross"|"reverse"|"jsd", temperature?: number, smoothing?: number, vocab?: number, rows?: number}
---@return cab.Tensor y []
---@return cab.Tensor parts [2]
---@overload fun(named: {x: cab.Tensor, w: cab.Tensor, b?: cab.Tensor, ids: cab.Tensor, segment?: cab.Tensor, tx?: cab.Tensor, tw?: cab.Tensor, tb?: cab.Tensor, top?: cab.Tensor, top_logits?: cab.Tensor, targets?: cab.Tensor, ce?: number, kl?: number, divergence?: "forward"|"cross"|"reverse"|"jsd", temperature?: number, smoothing?: number, vocab?: number, rows?: number}): cab.Tensor
function op.head_loss(x, w, b, ids, segment, tx, tw, tb, top, top_logits, targets, options) end

--- T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over rows (arXiv 1503.02531)
--- `student[R,C] teacher[R,C] | temperature=1 -> y^[]`
---@param student cab.Tensor [R,C]
---@param teacher cab.Tensor [R,C]
---@param options? {temperature?: number}
---@return cab.Tensor y []
---@overload fun(named: {student: cab.Tensor, teacher: cab.Tensor, temperature?: number}): cab.Tensor
function op.kl(student, teacher, options) end

--- the k largest of each row, largest first, and their columns from 0; of equals the first not differentiable
--- `x[R,C] | k=1 -> y[R,K] place:i32[R,K]`
---@param x cab.Tensor [R,C]
---@param options? {k?: number}
---@return cab.Tensor y [R,K]
---@return cab.Tensor place i32[R,K]
---@overload fun(named: {x: cab.Tensor, k?: number}): cab.Tensor
function op.largest(x, options) end

--- y = (s - mean) / sqrt(var + eps) w + b, s = x + residual (arXiv 1607.06450)
--- `x[*,D] w^[D] b^[D]? residual^[*,D]? | eps=1e-6 -> y[*,D] sum^[*,D] ~mean^[*] ~rstd^[*]`
---@param x cab.Tensor [*,D]
---@param w cab.Tensor [D]
---@param b? cab.Tensor [D]
---@param residual? cab.Tensor [*,D]
---@param options? {eps?: number}
---@return cab.Tensor y [*,D]
---@return cab.Tensor sum [*,D]
---@overload fun(named: {x: cab.Tensor, w: cab.Tensor, b?: cab.Tensor, residual?: cab.Tensor, eps?: number}): cab.Tensor
function op.layer_norm(x, w, b, residual, options) end

--- y = x w^T + b
--- `x~[*,I] w^[O,I] b^[O]? -> y[*,O]`
---@param x cab.Tensor [*,I]
---@param w cab.Tensor [O,I]
---@param b? cab.Tensor [O]
---@return cab.Tensor y [*,O]
---@overload fun(named: {x: cab.Tensor, w: cab.Tensor, b?: cab.Tensor}): cab.Tensor
function op.linear(x, w, b) end

--- y = ln x
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.log(x) end

--- kernel map of keys; softmax runs over tokens (arXiv 1812.01243)
--- `x[B,L,D] mean^[D]? deviation^[D]? | map=none|softmax|relu|exp|standard -> y[B,L,D]`
---@param x cab.Tensor [B,L,D]
---@param mean? cab.Tensor [D]
---@param deviation? cab.Tensor [D]
---@param options? {map?: "none"|"softmax"|"relu"|"exp"|"standard"}
---@return cab.Tensor y [B,L,D]
---@overload fun(named: {x: cab.Tensor, mean?: cab.Tensor, deviation?: cab.Tensor, map?: "none"|"softmax"|"relu"|"exp"|"standard"}): cab.Tensor
function op.map_keys(x, mean, deviation, options) end

--- kernel map of queries; softmax runs over features (arXiv 1812.01243)
--- `x[B,L,D] mean^[D]? deviation^[D]? | map=none|softmax|relu|exp|standard -> y[B,L,D]`
---@param x cab.Tensor [B,L,D]
---@param mean? cab.Tensor [D]
---@param deviation? cab.Tensor [D]
---@param options? {map?: "none"|"softmax"|"relu"|"exp"|"standard"}
---@return cab.Tensor y [B,L,D]
---@overload fun(named: {x: cab.Tensor, mean?: cab.Tensor, deviation?: cab.Tensor, map?: "none"|"softmax"|"relu"|"exp"|"standard"}): cab.Tensor
function op.map_queries(x, mean, deviation, options) end

--- y = a b; one of them may have no leading dims and is then shared
--- `a~[*?,M,K] b~[*?,K,N] -> y[*,M,N]`
---@param a cab.Tensor [*?,M,K]
---@param b cab.Tensor [*?,K,N]
---@return cab.Tensor y [*,M,N]
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.matmul(a, b) end

--- mean over dim (from 1; negative from the end), 0: over all
--- `x[*] | dim=0 -> y`
---@param x cab.Tensor [*]
---@param options? {dim?: number}
---@return cab.Tensor y 
---@overload fun(named: {x: cab.Tensor, dim?: number}): cab.Tensor
function op.mean(x, options) end

--- mean of (a - b)^2
--- `a[*] b[*] -> y^[]`
---@param a cab.Tensor [*]
---@param b cab.Tensor [*]
---@return cab.Tensor y []
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.mse(a, b) end

--- y = a b elementwise, broadcast
--- `a[&] b[&] -> y[&]`
---@param a cab.Tensor [&]
---@param b cab.Tensor [&]
---@return cab.Tensor y [&]
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.mul(a, b) end

--- y = -x
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.neg(x) end

--- linear map of each patch; stride 0: P (arXiv 2010.11929)
--- `x[B,C,H,W] w^[D,C,P,P] b^[D]? | stride=0 -> y[B,T,D]`
---@param x cab.Tensor [B,C,H,W]
---@param w cab.Tensor [D,C,P,P]
---@param b? cab.Tensor [D]
---@param options? {stride?: number}
---@return cab.Tensor y [B,T,D]
---@overload fun(named: {x: cab.Tensor, w: cab.Tensor, b?: cab.Tensor, stride?: number}): cab.Tensor
function op.patch_embed(x, w, b, options) end

--- place of each token in its document, from 0: a document is a run of one number not differentiable
--- `segment:i32[B,L] -> place:i32[B,L]`
---@param segment cab.Tensor i32[B,L]
---@return cab.Tensor place i32[B,L]
---@overload fun(named: {segment: cab.Tensor}): cab.Tensor
function op.places(segment) end

--- y = 1 / x
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.reciprocal(x) end

--- y = max(x, 0), gradient 0 at 0
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.relu(x) end

--- y = s / sqrt(mean s^2 + eps) w + b, s = x + residual (arXiv 1910.07467)
--- `x[*,D] w^[D] b^[D]? residual^[*,D]? | eps=1e-5 -> y[*,D] sum^[*,D] ~rstd^[*]`
---@param x cab.Tensor [*,D]
---@param w cab.Tensor [D]
---@param b? cab.Tensor [D]
---@param residual? cab.Tensor [*,D]
---@param options? {eps?: number}
---@return cab.Tensor y [*,D]
---@return cab.Tensor sum [*,D]
---@overload fun(named: {x: cab.Tensor, w: cab.Tensor, b?: cab.Tensor, residual?: cab.Tensor, eps?: number}): cab.Tensor
function op.rms_norm(x, w, b, residual, options) end

--- first `width` elements of each head (0: all) turned by (start + token) base^(-2i/width) (arXiv 2104.09864)
--- `x~[B,L,D] | heads=1 width=0 base=10000 start=0 -> y[B,L,D]`
---@param x cab.Tensor [B,L,D]
---@param options? {heads?: number, width?: number, base?: number, start?: number}
---@return cab.Tensor y [B,L,D]
---@overload fun(named: {x: cab.Tensor, heads?: number, width?: number, base?: number, start?: number}): cab.Tensor
function op.rotary(x, options) end

--- implicit attention of a scan, mean over channels; no gradient (arXiv 2403.01590) not differentiable
--- `dt[B,L,E] A^[E,N] B~[B,L,N] C~[B,L,N] bias^[E]? | softplus=true reverse=false -> m[B,L,L]`
---@param dt cab.Tensor [B,L,E]
---@param A cab.Tensor [E,N]
---@param B cab.Tensor [B,L,N]
---@param C cab.Tensor [B,L,N]
---@param bias? cab.Tensor [E]
---@param options? {softplus?: boolean, reverse?: boolean}
---@return cab.Tensor m [B,L,L]
---@overload fun(named: {dt: cab.Tensor, A: cab.Tensor, B: cab.Tensor, C: cab.Tensor, bias?: cab.Tensor, softplus?: boolean, reverse?: boolean}): cab.Tensor
function op.scan_matrix(dt, A, B, C, bias, options) end

--- two selective scans at once, the second from the last token to the first; weights as for selective_scan (arXiv 2401.09417, alg. 1)
--- `u[B,L,E] dt~[B,L,R] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? bias^[E]? weight^[E,R]? u_b[B,L,E] dt_b~[B,L,R] A_b^[E,N] B_b~[B,L,N] C_b~[B,L,N] D_b^[E]? bias_b^[E]? weight_b^[E,R]? | softplus=true -> y[B,L,E] y_b[B,L,E] ~h^[B,K,N,E] ~h_b^[B,K,N,E]`
---@param u cab.Tensor [B,L,E]
---@param dt cab.Tensor [B,L,R]
---@param A cab.Tensor [E,N]
---@param B cab.Tensor [B,L,N]
---@param C cab.Tensor [B,L,N]
---@param D? cab.Tensor [E]
---@param bias? cab.Tensor [E]
---@param weight? cab.Tensor [E,R]
---@param u_b cab.Tensor [B,L,E]
---@param dt_b cab.Tensor [B,L,R]
---@param A_b cab.Tensor [E,N]
---@param B_b cab.Tensor [B,L,N]
---@param C_b cab.Tensor [B,L,N]
---@param D_b? cab.Tensor [E]
---@param bias_b? cab.Tensor [E]
---@param weight_b? cab.Tensor [E,R]
---@param options? {softplus?: boolean}
---@return cab.Tensor y [B,L,E]
---@return cab.Tensor y_b [B,L,E]
---@overload fun(named: {u: cab.Tensor, dt: cab.Tensor, A: cab.Tensor, B: cab.Tensor, C: cab.Tensor, D?: cab.Tensor, bias?: cab.Tensor, weight?: cab.Tensor, u_b: cab.Tensor, dt_b: cab.Tensor, A_b: cab.Tensor, B_b: cab.Tensor, C_b: cab.Tensor, D_b?: cab.Tensor, bias_b?: cab.Tensor, weight_b?: cab.Tensor, softplus?: boolean}): cab.Tensor
function op.scan_pair(u, dt, A, B, C, D, bias, weight, u_b, dt_b, A_b, B_b, C_b, D_b, bias_b, weight_b, options) end

--- h_t = exp(d_t A) h_t-1 + d_t u_t B_t, y_t = (C_t h_t + D u_t) silu(z_t), d = softplus(dt + bias); with a weight of 1 to 64 columns d = softplus(weight dt + bias), without one R = E (arXiv 2312.00752, alg. 2)
--- `u[B,L,E] dt~[B,L,R] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? z~[B,L,E]? bias^[E]? weight^[E,R]? | softplus=true reverse=false -> y[B,L,E] ~h^[B,K,N,E]`
---@param u cab.Tensor [B,L,E]
---@param dt cab.Tensor [B,L,R]
---@param A cab.Tensor [E,N]
---@param B cab.Tensor [B,L,N]
---@param C cab.Tensor [B,L,N]
---@param D? cab.Tensor [E]
---@param z? cab.Tensor [B,L,E]
---@param bias? cab.Tensor [E]
---@param weight? cab.Tensor [E,R]
---@param options? {softplus?: boolean, reverse?: boolean}
---@return cab.Tensor y [B,L,E]
---@overload fun(named: {u: cab.Tensor, dt: cab.Tensor, A: cab.Tensor, B: cab.Tensor, C: cab.Tensor, D?: cab.Tensor, z?: cab.Tensor, bias?: cab.Tensor, weight?: cab.Tensor, softplus?: boolean, reverse?: boolean}): cab.Tensor
function op.selective_scan(u, dt, A, B, C, D, z, bias, weight, options) end

--- y = 1 / (1 + e^-x)
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.sigmoid(x) end

--- y = x sigmoid(x) (arXiv 1702.03118)
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.silu(x) end

--- y = e^x / sum e^x along dim
--- `x[*] | dim=-1 -> y[*]`
---@param x cab.Tensor [*]
---@param options? {dim?: number}
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor, dim?: number}): cab.Tensor
function op.softmax(x, options) end

--- y = ln(1 + e^x)
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.softplus(x) end

--- y = sqrt(x)
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.sqrt(x) end

--- y = x^2
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.square(x) end

--- per head S_t = exp(l_t) S_t-1 + dt_t x_t (outer) B_t, y_t = S_t C_t + D x_t, l = -softplus(a) or a; a new segment begins with S = 0 (arXiv 2405.21060, section 6)
--- `x~[B,L,E] a[B,L,H] B~[B,L,M] C~[B,L,M] dt[B,L,H]? D^[H]? start^[B,H,P,N]? segment:i32[B,L]? | groups=1 chunk=64 decay=softplus|log -> y[B,L,E] state^[B,H,P,N] ~h^[B,K,H,P,N]`
---@param x cab.Tensor [B,L,E]
---@param a cab.Tensor [B,L,H]
---@param B cab.Tensor [B,L,M]
---@param C cab.Tensor [B,L,M]
---@param dt? cab.Tensor [B,L,H]
---@param D? cab.Tensor [H]
---@param start? cab.Tensor [B,H,P,N]
---@param segment? cab.Tensor i32[B,L]
---@param options? {groups?: number, chunk?: number, decay?: "softplus"|"log"}
---@return cab.Tensor y [B,L,E]
---@return cab.Tensor state [B,H,P,N]
---@overload fun(named: {x: cab.Tensor, a: cab.Tensor, B: cab.Tensor, C: cab.Tensor, dt?: cab.Tensor, D?: cab.Tensor, start?: cab.Tensor, segment?: cab.Tensor, groups?: number, chunk?: number, decay?: "softplus"|"log"}): cab.Tensor
function op.ssd(x, a, B, C, dt, D, start, segment, options) end

--- y = a - b, broadcast
--- `a[&] b[&] -> y[&]`
---@param a cab.Tensor [&]
---@param b cab.Tensor [&]
---@return cab.Tensor y [&]
---@overload fun(named: {a: cab.Tensor, b: cab.Tensor}): cab.Tensor
function op.sub(a, b) end

--- sum over dim (from 1; negative from the end), 0: over all
--- `x[*] | dim=0 -> y`
---@param x cab.Tensor [*]
---@param options? {dim?: number}
---@return cab.Tensor y 
---@overload fun(named: {x: cab.Tensor, dim?: number}): cab.Tensor
function op.sum(x, options) end

--- y = tanh x
--- `x[*] -> y[*]`
---@param x cab.Tensor [*]
---@return cab.Tensor y [*]
---@overload fun(named: {x: cab.Tensor}): cab.Tensor
function op.tanh(x) end
