// Symmetric matrices on the host, row by row in float64: what is solved once, outside of programs.
import { SiglipError } from '../errors';

const { abs, hypot, sqrt } = Math;

/**
 * Solves A x = b for a symmetric positive definite A by Cholesky's L Lᵀ.
 *
 * @param matrix - (n, n); its lower triangle is overwritten by L
 * @returns a function that overwrites b, (n), by x
 * @throws ERR_ARGUMENT when the matrix is not positive definite
 */
export function choleskySolver(matrix: Float64Array, n: number): (b: Float64Array) => void {
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = matrix[i * n + j];
      for (let k = 0; k < j; k++) sum -= matrix[i * n + k] * matrix[j * n + k];
      if (i !== j) matrix[i * n + j] = sum / matrix[j * n + j];
      else if (sum > 0) matrix[i * n + i] = sqrt(sum);
      else {
        throw new SiglipError(
          'ERR_ARGUMENT',
          `choleskySolver: matrix must be positive definite, got a pivot of ${String(sum)} in row ${String(i)}`,
        );
      }
    }
  }
  return (b) => {
    for (let i = 0; i < n; i++) {
      let sum = b[i];
      for (let k = 0; k < i; k++) sum -= matrix[i * n + k] * b[k];
      b[i] = sum / matrix[i * n + i];
    }
    for (let i = n - 1; i >= 0; i--) {
      b[i] /= matrix[i * n + i];
      for (let k = 0; k < i; k++) b[k] -= matrix[i * n + k] * b[i];
    }
  };
}

/** A = Σ_i values_i · vector_i vector_iᵀ. */
export interface Eigen {
  /** (n), in no order. */
  readonly values: Float64Array;
  /** (n, n): row i is the eigenvector of unit length of values_i. */
  readonly vectors: Float64Array;
}

// Far above what any matrix needs; two or three sweeps an eigenvalue are usual.
const MAX_SWEEPS = 60;

/**
 * Eigenvalues and eigenvectors of a symmetric matrix: Householder's tridiagonal form, then the QL
 * algorithm with implicit shifts (Golub and Van Loan, Matrix Computations, §8.3).
 *
 * @param matrix - (n, n), left as it is
 * @throws ERR_NOT_FINITE when the matrix holds what is no number
 */
export function symmetricEigen(matrix: Float64Array, n: number): Eigen {
  const { diagonal, below, vectors } = tridiagonal(matrix, n);
  for (let first = 0; first < n; first++) {
    for (let sweep = 0; ; sweep++) {
      let last = first;
      while (last + 1 < n && !negligible(below[last], diagonal[last], diagonal[last + 1])) last++;
      if (last === first) break;
      if (sweep === MAX_SWEEPS) {
        throw new SiglipError(
          'ERR_NOT_FINITE',
          `symmetricEigen: matrix must be of finite numbers, got no eigenvalue after ${String(sweep)} sweeps`,
        );
      }
      implicitStep(diagonal, below, vectors, n, first, last);
    }
  }
  return { values: diagonal, vectors };
}

function negligible(off: number, a: number, b: number): boolean {
  return abs(off) <= Number.EPSILON * (abs(a) + abs(b));
}

interface Tridiagonal {
  readonly diagonal: Float64Array;
  /** below_i stands beside diagonal_i and diagonal_{i+1}; the last is 0. */
  readonly below: Float64Array;
  /** (n, n): row i is the i-th vector of the basis in which the matrix is tridiagonal. */
  readonly vectors: Float64Array;
}

// A ← H A H with H = I − β w wᵀ for every column but the last two; the H are gathered in the basis.
function tridiagonal(matrix: Float64Array, n: number): Tridiagonal {
  const a = Float64Array.from(matrix);
  const vectors = new Float64Array(n * n);
  for (let i = 0; i < n; i++) vectors[i * n + i] = 1;
  const w = new Float64Array(n);
  const p = new Float64Array(n);
  for (let k = 0; k + 2 < n; k++) {
    let norm = 0;
    for (let i = k + 1; i < n; i++) norm = hypot(norm, a[i * n + k]);
    if (norm === 0) continue;
    const head = a[(k + 1) * n + k];
    const alpha = head > 0 ? -norm : norm;
    w.fill(0);
    for (let i = k + 1; i < n; i++) w[i] = a[i * n + k];
    w[k + 1] -= alpha;
    // wᵀw = 2 (norm² − alpha · head)
    const beta = 1 / (norm * norm - alpha * head);
    let dot = 0;
    for (let i = k; i < n; i++) {
      let sum = 0;
      for (let j = k + 1; j < n; j++) sum += a[i * n + j] * w[j];
      p[i] = beta * sum;
      dot += p[i] * w[i];
    }
    const half = (beta * dot) / 2;
    for (let i = k; i < n; i++) p[i] -= half * w[i];
    for (let i = k; i < n; i++) {
      for (let j = k; j < n; j++) a[i * n + j] -= w[i] * p[j] + p[i] * w[j];
    }
    // Rows k + 1 … of the basis become H times themselves.
    p.fill(0);
    for (let i = k + 1; i < n; i++) {
      for (let j = 0; j < n; j++) p[j] += w[i] * vectors[i * n + j];
    }
    for (let i = k + 1; i < n; i++) {
      for (let j = 0; j < n; j++) vectors[i * n + j] -= beta * w[i] * p[j];
    }
  }
  const diagonal = Float64Array.from({ length: n }, (_, i) => a[i * n + i]);
  const below = Float64Array.from({ length: n }, (_, i) => (i + 1 < n ? a[(i + 1) * n + i] : 0));
  return { diagonal, below, vectors };
}

// One QL step on the block first … last, Wilkinson's shift from its upper end.
function implicitStep(
  d: Float64Array,
  e: Float64Array,
  vectors: Float64Array,
  n: number,
  first: number,
  last: number,
): void {
  const lean = (d[first + 1] - d[first]) / (2 * e[first]);
  const root = hypot(lean, 1);
  let g = d[last] - d[first] + e[first] / (lean + (lean >= 0 ? root : -root));
  let [sine, cosine, shift] = [1, 1, 0];
  for (let i = last - 1; i >= first; i--) {
    const f = sine * e[i];
    const b = cosine * e[i];
    const r = hypot(f, g);
    e[i + 1] = r;
    if (r === 0) {
      // The block falls apart here.
      d[i + 1] -= shift;
      e[last] = 0;
      return;
    }
    sine = f / r;
    cosine = g / r;
    g = d[i + 1] - shift;
    const t = (d[i] - g) * sine + 2 * cosine * b;
    shift = sine * t;
    d[i + 1] = g + shift;
    g = cosine * t - b;
    const [upper, lower] = [i * n, (i + 1) * n];
    for (let k = 0; k < n; k++) {
      const low = vectors[lower + k];
      vectors[lower + k] = sine * vectors[upper + k] + cosine * low;
      vectors[upper + k] = cosine * vectors[upper + k] - sine * low;
    }
  }
  d[first] -= shift;
  e[first] = g;
  e[last] = 0;
}
