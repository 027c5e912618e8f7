// Multi-Modal Moment Matching, M4 (Clip the Bias, arXiv 2403.04547 §4.2): weights of examples that even
// out how often sensitive attributes occur, and how they go together with labels.
//
// Let s ∈ {0,1}^m be the attributes of an example, π their targets, y ∈ {0,1}^c its labels, both from
// image and text. Among weights q ∈ [0, Q] of mean η the ones nearest to a utility u are sought for which
// |E[q (s_k − π_k) y_r]| ≤ ε_D E[q] and |E[q (s_k − π_k)]| ≤ ε_R E[q]. Each bound is two features of an
// example, f = ±(s_k − π_k) y_r or ±(s_k − π_k), less its ε; with a the vector of them, v their
// multipliers and μ that of the mean, one example is q = clip(u − vᵀa − μ, 0, Q), after which
// v ← clip(v + τ q a, 0, V) and μ ← μ + τ (q − η).
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';

/** What is known of an example, from image or text. */
export interface BiasExample {
  /** (m), 1 where an attribute is perceived, else 0. */
  readonly attributes: ArrayLike<number>;
  /** (c), 1 where a label applies, such as an occupation, else 0. */
  readonly labels: ArrayLike<number>;
}

/** SigLIP 2 does not say which; see each for its default. */
export interface ClipTheBiasOptions {
  /** π: the share that each attribute should have, (m). */
  readonly targets: readonly number[];
  /** c: number of labels. */
  readonly labels: number;
  /** ε_D, of attributes with labels. Default 0.01. */
  readonly associationTolerance?: number;
  /** ε_R, of attributes alone. Default 0.01. */
  readonly representationTolerance?: number;
  /** V: how strictly bounds hold. Default 1000. */
  readonly enforcement?: number;
  /** Q: the largest weight. Default 1, so that a weight is a probability to be kept. */
  readonly largest?: number;
  /** η: the mean weight. Default 0.9; the paper removes about a tenth. */
  readonly mean?: number;
  /**
   * τ. Default 0.001: some hundred thousand examples until the multipliers are where they belong, around
   * which they then tremble by about √τ. A run that goes on from them at a tenth of the rate settles them.
   */
  readonly rate?: number;
}

/** Multipliers; plain JSON. */
export interface ClipTheBiasState {
  /** v: for each attribute and bound the multiplier of +, then that of −. */
  readonly multipliers: readonly number[];
  /** μ */
  readonly mean: number;
}

const defaults = {
  associationTolerance: 0.01,
  representationTolerance: 0.01,
  enforcement: 1e3,
  largest: 1,
  mean: 0.9,
  rate: 1e-3,
} as const;

/**
 * Learns weights from a stream of examples and gives them.
 *
 * @example
 * const fair = new ClipTheBias({ targets: [0.5], labels: occupations.length });
 * for (const example of stream) fair.update(example);
 * const kept = corpus.filter((example, i) => keeps(fair.weight(example), seed, i));
 */
export class ClipTheBias {
  private readonly options: Required<ClipTheBiasOptions>;
  /** v: (m, 1 + c, 2); the bound without a label comes first. */
  private readonly multipliers: Float64Array;
  private shift = 0;

  /** @throws ERR_ARGUMENT when an option is out of its range */
  constructor(options: ClipTheBiasOptions) {
    this.options = { ...defaults, ...options };
    const { targets, labels, enforcement, largest, mean, rate } = this.options;
    const { associationTolerance, representationTolerance } = this.options;
    expectOption(
      'targets',
      'shares from 0 to 1',
      targets,
      targets.every((x) => x >= 0 && x <= 1),
    );
    expectOption(
      'labels',
      'an integer from 0',
      labels,
      Number.isSafeInteger(labels) && labels >= 0,
    );
    expectOption('associationTolerance', 'from 0', associationTolerance, associationTolerance >= 0);
    expectOption(
      'representationTolerance',
      'from 0',
      representationTolerance,
      representationTolerance >= 0,
    );
    expectOption('enforcement', 'positive', enforcement, enforcement > 0);
    expectOption('largest', 'positive', largest, largest > 0);
    expectOption('mean', `between 0 and ${String(largest)}`, mean, mean > 0 && mean < largest);
    expectOption('rate', 'positive', rate, rate > 0);
    this.multipliers = new Float64Array(targets.length * (1 + labels) * 2);
  }

  /**
   * q of an example by the multipliers as they are, from 0 to Q.
   *
   * @param utility - u, the weight it had without any bound; default η
   * @throws ERR_DATA when the example has another number of attributes or labels
   */
  weight(example: BiasExample, utility = this.options.mean): number {
    let shift = this.shift;
    this.forEachFeature(example, (j, a) => {
      shift += this.multipliers[j] * a;
    });
    return Math.min(this.options.largest, Math.max(0, utility - shift));
  }

  /** As {@link weight}, and moves the multipliers by the example. */
  update(example: BiasExample, utility?: number): number {
    const { rate, enforcement, mean } = this.options;
    const q = this.weight(example, utility);
    this.forEachFeature(example, (j, a) => {
      const moved = this.multipliers[j] + rate * q * a;
      this.multipliers[j] = Math.min(enforcement, Math.max(0, moved));
    });
    this.shift += rate * (q - mean);
    return q;
  }

  /** The multipliers. */
  state(): ClipTheBiasState {
    return { multipliers: [...this.multipliers], mean: this.shift };
  }

  /** Continues from the multipliers of a run with the same options. @throws ERR_DATA */
  restore({ multipliers, mean }: ClipTheBiasState): void {
    if (multipliers.length !== this.multipliers.length) {
      throw new SiglipError(
        'ERR_DATA',
        `ClipTheBias.restore: multipliers must be ${String(this.multipliers.length)}, got ${String(multipliers.length)}`,
      );
    }
    this.multipliers.set(multipliers);
    this.shift = mean;
  }

  private forEachFeature(example: BiasExample, visit: (j: number, a: number) => void): void {
    const { targets, labels, associationTolerance, representationTolerance } = this.options;
    expectCounts(example, targets.length, labels);
    let j = 0;
    for (const [k, target] of targets.entries()) {
      const excess = example.attributes[k] - target;
      for (let r = -1; r < labels; r++) {
        const f = r < 0 ? excess : excess * example.labels[r];
        const tolerance = r < 0 ? representationTolerance : associationTolerance;
        visit(j++, f - tolerance);
        visit(j++, -f - tolerance);
      }
    }
  }
}

/** Whether an example of a weight up to 1 is kept: the same for the same seed and number. */
export function keeps(weight: number, seed: number, index: number): boolean {
  const random = new Philox4x32(seed, 'Clip the Bias');
  random.position = index;
  return random.uniform() < weight;
}

/** Bias of a corpus (arXiv 2403.04547 §3). */
export interface Bias {
  /** Largest distance of an attribute's share from its target. */
  readonly representation: number;
  /** Largest covariance of an attribute and a label, absolute; at most ε_D + ε_R E[y] by the bounds. */
  readonly association: number;
  /** Largest |E[(s_k − π_k) y_r]|, which is what ε_D bounds. */
  readonly parity: number;
  /** Share of each attribute, (m). */
  readonly shares: readonly number[];
  /** Covariance of each attribute and label, (m, c). */
  readonly covariances: readonly (readonly number[])[];
}

/** Bias before and after weighting. */
export interface BiasReport {
  readonly examples: number;
  readonly before: Bias;
  readonly after: Bias;
  /** Mean weight: the share of the corpus that is kept. */
  readonly kept: number;
}

/**
 * Representation and association bias of examples as they are, and as they are weighted or kept.
 *
 * @param weigh - weight of an example by its number from 0
 * @throws ERR_DATA when examples disagree in the number of attributes or labels, or all weights are 0
 */
export function biasReport(
  examples: Iterable<BiasExample>,
  { targets, labels }: Pick<ClipTheBiasOptions, 'targets' | 'labels'>,
  weigh: (example: BiasExample, index: number) => number,
): BiasReport {
  const [before, after] = [new Moments(targets, labels), new Moments(targets, labels)];
  let count = 0;
  for (const example of examples) {
    expectCounts(example, targets.length, labels);
    before.add(example, 1);
    after.add(example, weigh(example, count++));
  }
  return {
    examples: count,
    before: before.bias(),
    after: after.bias(),
    kept: after.mass / count,
  };
}

class Moments {
  /** Σ q */
  mass = 0;
  private readonly attributes: Float64Array;
  private readonly labels: Float64Array;
  /** (m, c) */
  private readonly together: Float64Array;

  constructor(
    private readonly targets: readonly number[],
    labels: number,
  ) {
    this.attributes = new Float64Array(targets.length);
    this.labels = new Float64Array(labels);
    this.together = new Float64Array(targets.length * labels);
  }

  add({ attributes, labels }: BiasExample, q: number): void {
    this.mass += q;
    for (let r = 0; r < labels.length; r++) this.labels[r] += q * labels[r];
    for (let k = 0; k < attributes.length; k++) {
      this.attributes[k] += q * attributes[k];
      for (let r = 0; r < labels.length; r++) {
        this.together[k * labels.length + r] += q * attributes[k] * labels[r];
      }
    }
  }

  bias(): Bias {
    const { mass } = this;
    if (!(mass > 0)) {
      throw new SiglipError(
        'ERR_DATA',
        `biasReport: weights must have a positive sum, got ${String(mass)}`,
      );
    }
    const shares = Array.from(this.attributes, (sum) => sum / mass);
    const covariances = shares.map((share, k) =>
      Array.from(
        this.labels,
        (sum, r) => this.together[k * this.labels.length + r] / mass - (share * sum) / mass,
      ),
    );
    const parities = shares.map((share, k) =>
      Array.from(
        this.labels,
        (sum, r) => covariances[k][r] + ((share - this.targets[k]) * sum) / mass,
      ),
    );
    return {
      representation: Math.max(0, ...shares.map((share, k) => Math.abs(this.targets[k] - share))),
      association: Math.max(0, ...covariances.flat().map(Math.abs)),
      parity: Math.max(0, ...parities.flat().map(Math.abs)),
      shares,
      covariances,
    };
  }
}

function expectCounts({ attributes, labels }: BiasExample, m: number, c: number): void {
  if (attributes.length === m && labels.length === c) return;
  throw new SiglipError(
    'ERR_DATA',
    `ClipTheBias: an example must have ${String(m)} attributes and ${String(c)} labels, got ` +
      `${String(attributes.length)} and ${String(labels.length)}`,
  );
}

function expectOption(name: string, expected: string, value: unknown, valid: boolean): void {
  if (valid) return;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `ClipTheBias: ${name} must be ${expected}, got ${String(value)}`,
  );
}
