// S = exp(t) X Yᵀ + b, z = +1 where j = i + offset and −1 elsewhere,
// L = (1/batch) Σ_ij softplus(−z_ij S_ij). With the whole matrix written out.
import type { NdArray } from './nd_array';
import { item, scalar, zeros } from './nd_array';

/** Where the positives lie and what the sum is divided by. */
export interface SigmoidLossOptions {
  /** Column of the positive of row 0. Default 0. */
  readonly offset?: number;
  /** Divisor, the global batch. Default: the number of images. */
  readonly batch?: number;
}

function softplus(u: number): number {
  return Math.max(u, 0) + Math.log1p(Math.exp(-Math.abs(u)));
}

function sigmoid(u: number): number {
  return 1 / (1 + Math.exp(-u));
}

/** images (R, E), texts (C, E), t (1), b (1) -> S (R, C). */
export function logits(images: NdArray, texts: NdArray, t: NdArray, b: NdArray): NdArray {
  const [R, E] = images.shape;
  const C = texts.shape[0];
  const S = zeros([R, C]);
  for (let i = 0; i < R; i++) {
    for (let j = 0; j < C; j++) {
      let similarity = 0;
      for (let e = 0; e < E; e++) similarity += images.data[i * E + e] * texts.data[j * E + e];
      S.data[i * C + j] = Math.exp(item(t)) * similarity + item(b);
    }
  }
  return S;
}

/** images (R, E), texts (C, E), t (1), b (1) -> loss (1). */
export function sigmoidLoss(
  images: NdArray,
  texts: NdArray,
  t: NdArray,
  b: NdArray,
  { offset = 0, batch = images.shape[0] }: SigmoidLossOptions = {},
): NdArray {
  const S = logits(images, texts, t, b);
  const [R, C] = S.shape;
  let sum = 0;
  for (let i = 0; i < R; i++) {
    for (let j = 0; j < C; j++) {
      const z = j === i + offset ? 1 : -1;
      sum += softplus(-z * S.data[i * C + j]);
    }
  }
  return scalar(sum / batch);
}

/** G = (σ(S) − 1[positive]) / batch: dX = e^t G Y, dY = e^t Gᵀ X, dt = Σ G (S − b), db = Σ G, all times dloss. */
export function sigmoidLossBackward(
  dloss: NdArray,
  images: NdArray,
  texts: NdArray,
  t: NdArray,
  b: NdArray,
  { offset = 0, batch = images.shape[0] }: SigmoidLossOptions = {},
): { dimages: NdArray; dtexts: NdArray; dlogitScale: NdArray; dlogitBias: NdArray } {
  const S = logits(images, texts, t, b);
  const [R, C] = S.shape;
  const E = images.shape[1];
  const tau = Math.exp(item(t));
  const dimages = zeros(images.shape);
  const dtexts = zeros(texts.shape);
  let dt = 0;
  let db = 0;
  for (let i = 0; i < R; i++) {
    for (let j = 0; j < C; j++) {
      const s = S.data[i * C + j];
      const g = (item(dloss) * (sigmoid(s) - (j === i + offset ? 1 : 0))) / batch;
      dt += g * (s - item(b));
      db += g;
      for (let e = 0; e < E; e++) {
        dimages.data[i * E + e] += tau * g * texts.data[j * E + e];
        dtexts.data[j * E + e] += tau * g * images.data[i * E + e];
      }
    }
  }
  return { dimages, dtexts, dlogitScale: scalar(dt), dlogitBias: scalar(db) };
}
