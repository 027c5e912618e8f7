// y_h = Σ_t p_ht x_t with p_h = softmax_t ⟨u_h, x_t⟩: pooling by queries that are folded into the keys'
// projection. x (B, N, D), u (H, D) for all sequences or (B, H, D); keyMask (B, N), 1 = counts. A
// sequence without tokens gives zeros.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

export interface PoolOptions {
  readonly keyMask?: NdArray | undefined;
}

interface Head {
  /** First element of the sequence in x, of the head in u, and of the result in y. */
  readonly x: number;
  readonly u: number;
  readonly y: number;
  /** Probabilities of the tokens. */
  readonly p: Float64Array;
}

function heads(x: NdArray, u: NdArray, { keyMask }: PoolOptions): Head[] {
  const [B, N, D] = x.shape;
  const H = u.shape[u.shape.length - 2];
  const all: Head[] = [];
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      const at = { x: b * N * D, u: ((u.shape.length === 2 ? 0 : b * H) + h) * D };
      const scores = new Float64Array(N).fill(-Infinity);
      for (let t = 0; t < N; t++) {
        if (keyMask?.data[b * N + t] === 0) continue;
        scores[t] = 0;
        for (let d = 0; d < D; d++) scores[t] += u.data[at.u + d] * x.data[at.x + t * D + d];
      }
      const max = scores.reduce((best, s) => Math.max(best, s), -Infinity);
      const weights = scores.map((s) => (max === -Infinity ? 0 : Math.exp(s - max)));
      const total = weights.reduce((sum, w) => sum + w, 0);
      const p = weights.map((w) => (total === 0 ? 0 : w / total));
      all.push({ ...at, y: (b * H + h) * D, p });
    }
  }
  return all;
}

/** (B, H, D). */
export function attentionPool(x: NdArray, u: NdArray, options: PoolOptions = {}): NdArray {
  const [B, , D] = x.shape;
  const y = zeros([B, u.shape[u.shape.length - 2], D]);
  for (const head of heads(x, u, options)) {
    head.p.forEach((p, t) => {
      for (let d = 0; d < D; d++) y.data[head.y + d] += p * x.data[head.x + t * D + d];
    });
  }
  return y;
}

/** dp_ht = ⟨dy_h, x_t⟩, ds = p (dp − Σ_t p dp); dx_t = Σ_h ds u_h + p dy_h, du_h = Σ_t ds x_t. */
export function attentionPoolBackward(
  dy: NdArray,
  x: NdArray,
  u: NdArray,
  options: PoolOptions = {},
): { dx: NdArray; du: NdArray } {
  const D = x.shape[2];
  const dx = zeros(x.shape);
  const du = zeros(u.shape);
  for (const head of heads(x, u, options)) {
    const dp = head.p.map((_, t) => {
      let sum = 0;
      for (let d = 0; d < D; d++) sum += dy.data[head.y + d] * x.data[head.x + t * D + d];
      return sum;
    });
    const delta = head.p.reduce((sum, p, t) => sum + p * dp[t], 0);
    head.p.forEach((p, t) => {
      const ds = p * (dp[t] - delta);
      for (let d = 0; d < D; d++) {
        dx.data[head.x + t * D + d] += ds * u.data[head.u + d] + p * dy.data[head.y + d];
        du.data[head.u + d] += ds * x.data[head.x + t * D + d];
      }
    });
  }
  return { dx, du };
}
