// z = hidden · Wᵀ + bias, L = Σ_n r_n (log Σ_v exp z_nv − z_n,label), with all logits written out.
import type { NdArray } from './nd_array';
import { item, scalar, zeros } from './nd_array';

/** hidden (N, D), weight (V, D), bias (V) -> z (N, V). */
export function logits(hidden: NdArray, weight: NdArray, bias: NdArray): NdArray {
  const [N, D] = hidden.shape;
  const V = weight.shape[0];
  const z = zeros([N, V]);
  for (let n = 0; n < N; n++) {
    for (let v = 0; v < V; v++) {
      let sum = bias.data[v];
      for (let d = 0; d < D; d++) sum += hidden.data[n * D + d] * weight.data[v * D + d];
      z.data[n * V + v] = sum;
    }
  }
  return z;
}

/** log Σ exp of a row. */
function logSumExp(row: Float64Array): number {
  const max = row.reduce((best, value) => Math.max(best, value), -Infinity);
  return max + Math.log(row.reduce((sum, value) => sum + Math.exp(value - max), 0));
}

/** labels (N), rowWeights (N) -> L (1). */
export function vocabularyLoss(
  hidden: NdArray,
  weight: NdArray,
  bias: NdArray,
  labels: NdArray,
  rowWeights: NdArray,
): NdArray {
  const z = logits(hidden, weight, bias);
  const [N, V] = z.shape;
  let loss = 0;
  for (let n = 0; n < N; n++) {
    const row = z.data.subarray(n * V, (n + 1) * V);
    loss += rowWeights.data[n] * (logSumExp(row) - row[labels.data[n]]);
  }
  return scalar(loss);
}

/** G = dL r ∘ (softmax(z) − onehot): dhidden = G W, dweight = Gᵀ hidden, dbias = Σ_n G. */
export function vocabularyLossBackward(
  dloss: NdArray,
  hidden: NdArray,
  weight: NdArray,
  bias: NdArray,
  labels: NdArray,
  rowWeights: NdArray,
): { dhidden: NdArray; dweight: NdArray; dbias: NdArray } {
  const z = logits(hidden, weight, bias);
  const [N, V] = z.shape;
  const D = hidden.shape[1];
  const dhidden = zeros(hidden.shape);
  const dweight = zeros(weight.shape);
  const dbias = zeros(bias.shape);
  for (let n = 0; n < N; n++) {
    const row = z.data.subarray(n * V, (n + 1) * V);
    const lse = logSumExp(row);
    for (let v = 0; v < V; v++) {
      const onehot = v === labels.data[n] ? 1 : 0;
      const g = item(dloss) * rowWeights.data[n] * (Math.exp(row[v] - lse) - onehot);
      dbias.data[v] += g;
      for (let d = 0; d < D; d++) {
        dhidden.data[n * D + d] += g * weight.data[v * D + d];
        dweight.data[v * D + d] += g * hidden.data[n * D + d];
      }
    }
  }
  return { dhidden, dweight, dbias };
}
