// Cross-entropy of two softmaxes over prototypes, and Sinkhorn-Knopp as DINOv2 writes it down
// (dinov2/loss/dino_clstoken_loss.py), with the whole matrices of logits.
import type { NdArray } from './nd_array';
import { item, scalar, zeros } from './nd_array';

export interface PrototypeLossOperands {
  readonly student: NdArray;
  readonly studentPrototypes: NdArray;
  readonly teacher: NdArray;
  readonly teacherPrototypes: NdArray;
  readonly centre: NdArray;
  readonly weights: NdArray;
  /** Default: every row's own. */
  readonly teacherRows: NdArray | undefined;
  readonly teacherTemperature: NdArray;
}

/** features (n, F), prototypes (K, F) -> (n, K). */
export function logits(features: NdArray, prototypes: NdArray): NdArray {
  const [n, F] = features.shape;
  const K = prototypes.shape[0];
  const y = zeros([n, K]);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < K; k++) {
      let sum = 0;
      for (let f = 0; f < F; f++) sum += features.data[i * F + f] * prototypes.data[k * F + f];
      y.data[i * K + k] = sum;
    }
  }
  return y;
}

/** softmax_k((x_ik − centre_k) / temperature), (n, K). */
export function softmax(x: NdArray, temperature: number, centre?: NdArray): NdArray {
  const [n, K] = x.shape;
  const y = zeros([n, K]);
  for (let i = 0; i < n; i++) {
    const row = Array.from(
      { length: K },
      (_, k) => (x.data[i * K + k] - (centre?.data[k] ?? 0)) / temperature,
    );
    const high = Math.max(...row);
    const sum = row.reduce((total, value) => total + Math.exp(value - high), 0);
    for (let k = 0; k < K; k++) y.data[i * K + k] = Math.exp(row[k] - high) / sum;
  }
  return y;
}

function distributions(o: PrototypeLossOperands, studentTemperature: number): [NdArray, NdArray] {
  const p = softmax(logits(o.student, o.studentPrototypes), studentTemperature);
  const q = softmax(logits(o.teacher, o.teacherPrototypes), item(o.teacherTemperature), o.centre);
  return [p, q];
}

/** Σ_i weight_i · −Σ_k q_{r(i)k} log p_ik, (1). */
export function prototypeLoss(o: PrototypeLossOperands, studentTemperature: number): NdArray {
  const [p, q] = distributions(o, studentTemperature);
  const [n, K] = p.shape;
  let loss = 0;
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < K; k++) {
      const target = q.data[(o.teacherRows?.data[i] ?? i) * K + k];
      loss -= o.weights.data[i] * target * Math.log(p.data[i * K + k]);
    }
  }
  return scalar(loss);
}

/** G = dloss · weight (p − q) / τ_S; the student's dfeatures = G W, dprototypes = Gᵀ S. */
export function prototypeLossBackward(
  dloss: NdArray,
  o: PrototypeLossOperands,
  studentTemperature: number,
): { dstudent: NdArray; dstudentPrototypes: NdArray } {
  const [p, q] = distributions(o, studentTemperature);
  const [n, K] = p.shape;
  const F = o.student.shape[1];
  const dstudent = zeros(o.student.shape);
  const dstudentPrototypes = zeros(o.studentPrototypes.shape);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < K; k++) {
      const difference = p.data[i * K + k] - q.data[(o.teacherRows?.data[i] ?? i) * K + k];
      const g = (item(dloss) * o.weights.data[i] * difference) / studentTemperature;
      for (let f = 0; f < F; f++) {
        dstudent.data[i * F + f] += g * o.studentPrototypes.data[k * F + f];
        dstudentPrototypes.data[k * F + f] += g * o.student.data[i * F + f];
      }
    }
  }
  return { dstudent, dstudentPrototypes };
}

/** Q (n, K) after some iterations; over there its rows are prototypes, which are normalised first. */
export function sinkhorn(x: NdArray, temperature: number, iterations: number): NdArray {
  const [n, K] = x.shape;
  const high = x.data.reduce((most, value) => Math.max(most, value), -Infinity);
  const q = x.data.map((value) => Math.exp((value - high) / temperature));
  const scale = (indices: number[], share: number): void => {
    const sum = indices.reduce((total, i) => total + q[i], 0);
    for (const i of indices) q[i] *= share / sum;
  };
  for (let iteration = 0; iteration < iterations; iteration++) {
    for (let k = 0; k < K; k++) {
      scale(
        Array.from({ length: n }, (_, j) => j * K + k),
        1 / K,
      );
    }
    for (let j = 0; j < n; j++) {
      scale(
        Array.from({ length: K }, (_, k) => j * K + k),
        1,
      );
    }
  }
  return { shape: [n, K], data: q };
}

/** The centre with which the softmax of any row is that of Q: c_k = x_0k − τ log Q_0k. */
export function sinkhornCentre(
  features: NdArray,
  prototypes: NdArray,
  temperature: number,
  iterations: number,
): NdArray {
  const x = logits(features, prototypes);
  const q = sinkhorn(x, temperature, iterations);
  const K = prototypes.shape[0];
  const data = Float64Array.from(
    { length: K },
    (_, k) => x.data[k] - temperature * Math.log(q.data[k]),
  );
  return { shape: [K], data };
}
