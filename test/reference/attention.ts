// Multi-head attention, O = softmax(Q Kᵀ / √hd) V per image and head, with the scores written out.
// Layout (B, T, D), D = heads · hd, heads interleaved in a token. keyMask (B, Tk): 1 = attend,
// 0 = ignore; a query without any key gives zeros. causal (B): where it is 1, query i has the keys 0 to i.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** Number of heads and what limits the keys. */
export interface AttentionOptions {
  readonly heads: number;
  readonly keyMask?: NdArray;
  readonly causal?: NdArray;
}

/** The probabilities of one query over all keys. */
function probabilities(
  q: NdArray,
  k: NdArray,
  { heads, keyMask, causal }: AttentionOptions,
  [b, h, i]: readonly [number, number, number],
): Float64Array {
  const [, Tq, D] = q.shape;
  const Tk = k.shape[1];
  const hd = D / heads;
  const scores = new Float64Array(Tk).fill(-Infinity);
  for (let j = 0; j < Tk; j++) {
    if (keyMask?.data[b * Tk + j] === 0) continue;
    if (causal?.data[b] === 1 && j > i) continue;
    let sum = 0;
    for (let d = 0; d < hd; d++) {
      sum += q.data[(b * Tq + i) * D + h * hd + d] * k.data[(b * Tk + j) * D + h * hd + d];
    }
    scores[j] = sum / Math.sqrt(hd);
  }
  const max = scores.reduce((best, s) => Math.max(best, s), -Infinity);
  if (max === -Infinity) return new Float64Array(Tk);
  const weights = scores.map((s) => Math.exp(s - max));
  const total = weights.reduce((sum, w) => sum + w, 0);
  return weights.map((w) => w / total);
}

/** q (B, Tq, D), k and v (B, Tk, D) -> (B, Tq, D). */
export function attention(q: NdArray, k: NdArray, v: NdArray, options: AttentionOptions): NdArray {
  const [B, Tq, D] = q.shape;
  const Tk = k.shape[1];
  const hd = D / options.heads;
  const o = zeros(q.shape);
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < options.heads; h++) {
      for (let i = 0; i < Tq; i++) {
        const p = probabilities(q, k, options, [b, h, i]);
        for (let j = 0; j < Tk; j++) {
          for (let d = 0; d < hd; d++) {
            o.data[(b * Tq + i) * D + h * hd + d] += p[j] * v.data[(b * Tk + j) * D + h * hd + d];
          }
        }
      }
    }
  }
  return o;
}

/** dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − Σ_j P dP), dQ = dS K / √hd, dK = dSᵀ Q / √hd. */
export function attentionBackward(
  dout: NdArray,
  q: NdArray,
  k: NdArray,
  v: NdArray,
  options: AttentionOptions,
): { dq: NdArray; dk: NdArray; dv: NdArray } {
  const [B, Tq, D] = q.shape;
  const Tk = k.shape[1];
  const hd = D / options.heads;
  const dq = zeros(q.shape);
  const dk = zeros(k.shape);
  const dv = zeros(v.shape);
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < options.heads; h++) {
      for (let i = 0; i < Tq; i++) {
        const p = probabilities(q, k, options, [b, h, i]);
        const query = (b * Tq + i) * D + h * hd;
        const key = (j: number): number => (b * Tk + j) * D + h * hd;
        const dp = new Float64Array(Tk);
        let delta = 0;
        for (let j = 0; j < Tk; j++) {
          for (let d = 0; d < hd; d++) {
            dv.data[key(j) + d] += p[j] * dout.data[query + d];
            dp[j] += dout.data[query + d] * v.data[key(j) + d];
          }
          delta += p[j] * dp[j];
        }
        for (let j = 0; j < Tk; j++) {
          const ds = (p[j] * (dp[j] - delta)) / Math.sqrt(hd);
          for (let d = 0; d < hd; d++) {
            dq.data[query + d] += ds * k.data[key(j) + d];
            dk.data[key(j) + d] += ds * q.data[query + d];
          }
        }
      }
    }
  }
  return { dq, dk, dv };
}
