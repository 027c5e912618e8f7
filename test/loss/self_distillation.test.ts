import type { Tensor } from '../../lib/graph';
import { compile, float32, gradient, int32, scope, stopGradient } from '../../lib/graph';
import {
  distillationSizeFactors,
  distillationWeights,
  localLoss,
  maskedLoss,
  STUDENT_TEMPERATURE,
  TEACHER_TEMPERATURE,
  teacherTemperature,
  updateCentre,
} from '../../lib/loss';
import type { DistillationOptions } from '../../lib/loss';
import type { DistillationHeads, SelfDistillationConfig, VisionOutput } from '../../lib/model';
import {
  patchHeadOf,
  selfDistillationParameters,
  teacherPart,
  visionParameters,
  visionTower,
} from '../../lib/model';
import type { ProjectionHeadParameters } from '../../lib/nn';
import * as ops from '../../lib/ops';
import type { Value } from '../nn/evaluate';
import {
  bytes,
  evaluate,
  integers,
  nd,
  ndTree,
  random,
  randomParameter,
  values,
} from '../nn/evaluate';
import { fixedConfig } from '../nn/towers';
import { geluErf } from '../reference/gelu';
import { l2Normalize } from '../reference/l2_normalize';
import { linear } from '../reference/linear';
import type { NdArray } from '../reference/nd_array';
import { ndArray, reshape } from '../reference/nd_array';
import * as reference from '../reference/prototype_loss';

const [B, V, N, D] = [3, 4, 5, 8];
const config: SelfDistillationConfig = {
  hidden: 12,
  bottleneck: 6,
  prototypes: 20,
  patchPrototypes: 15,
  sharedHead: false,
};

function headsOf(prefix: string): DistillationHeads<Value> {
  const { pooledHead, patchHead } = selfDistillationParameters(D, config, (spec) =>
    randomParameter({ ...spec, path: `${prefix}${spec.path}` }),
  );
  return { pooledHead, patchHead };
}

const heads = headsOf('');
const teacherHeads = headsOf('teacher.');
const temperature = values([1], [TEACHER_TEMPERATURE]);

const local = {
  student: random('student', [B * V, D]),
  teacher: random('teacher', [B, D]),
  images: integers(
    [B * V],
    Array.from({ length: B * V }, (_, i) => Math.floor(i / V)),
  ),
};
const tokens = {
  student: random('student tokens', [B, N, D]),
  teacher: random('teacher tokens', [B, N, D]),
  rows: integers([5], [1, 3, 6, 14, 10]),
  weights: values([5], [1 / 6, 1 / 6, 1 / 3, 1 / 6, 1 / 6]),
};
const pooledCentre = random('centre', [20], 0.02);
const patchCentre = random('patch centre', [15], 0.02);

function features(x: NdArray, head: ProjectionHeadParameters<NdArray>): NdArray {
  const first = geluErf(linear(x, head.fc1.weight, head.fc1.bias));
  const second = geluErf(linear(first, head.fc2.weight, head.fc2.bias));
  return l2Normalize(linear(second, head.fc3.weight, head.fc3.bias), 0);
}

function logits(x: NdArray, head: ProjectionHeadParameters<NdArray>): NdArray {
  return reference.logits(features(x, head), l2Normalize(head.prototypes, 0));
}

/** −Σ_k q_k log p_k of rows of logits. */
function crossEntropies(student: NdArray, q: NdArray, rows: readonly number[]): number[] {
  const p = reference.softmax(student, STUDENT_TEMPERATURE);
  const K = p.shape[1];
  return rows.map((row, i) =>
    Array.from({ length: K }, (_, k) => -q.data[row * K + k] * Math.log(p.data[i * K + k])).reduce(
      (sum, term) => sum + term,
    ),
  );
}

function select(x: NdArray, rows: readonly number[]): NdArray {
  const K = x.shape[1];
  return ndArray(
    [rows.length, K],
    rows.flatMap((row) => [...x.data.subarray(row * K, (row + 1) * K)]),
  );
}

const inputs = { heads, teacherHeads, local, tokens, temperature, pooledCentre, patchCentre };
type Inputs = typeof inputs;

function runLocal(given: Inputs, options: DistillationOptions = {}): ReturnType<typeof evaluate> {
  return evaluate(given, (t) => {
    const targets = { centre: t.pooledCentre, temperature: t.temperature };
    return localLoss(t.local, t.heads, t.teacherHeads, targets, options);
  });
}

function runMasked(given: Inputs, options: DistillationOptions = {}): ReturnType<typeof evaluate> {
  return evaluate(given, (t) => {
    const targets = { centre: t.patchCentre, temperature: t.temperature };
    return maskedLoss(t.tokens, t.heads, t.teacherHeads, targets, options);
  });
}

function meanOfRows(x: NdArray): number[] {
  const [n, K] = x.shape;
  return Array.from(
    { length: K },
    (_, k) => Array.from({ length: n }, (_, i) => x.data[i * K + k]).reduce((a, b) => a + b) / n,
  );
}

function expectNear(actual: ArrayLike<number>, expected: readonly number[], bar = 1e-5): void {
  expect(actual.length).toBe(expected.length);
  expected.forEach((value, i) => {
    expect(Math.abs(actual[i] - value)).toBeLessThan(bar);
  });
}

const ndInputs = ndTree(inputs);

describe('local views', () => {
  const student = logits(ndInputs.local.student, ndInputs.heads.pooledHead);
  const teacher = logits(ndInputs.local.teacher, ndInputs.teacherHeads.pooledHead);
  const rows = Array.from(local.images.data);

  test('the mean over images and views of the cross-entropy', async () => {
    const q = reference.softmax(teacher, TEACHER_TEMPERATURE, nd(pooledCentre));
    const terms = crossEntropies(student, q, rows);
    const { loss, meanLogits } = await runLocal(inputs);
    expectNear(loss, [terms.reduce((sum, term) => sum + term) / (B * V)]);
    expectNear(meanLogits, meanOfRows(teacher));
  });

  test('the same with the balance of Sinkhorn-Knopp, which reads no centre', async () => {
    const q = reference.sinkhorn(teacher, TEACHER_TEMPERATURE, 3);
    const terms = crossEntropies(student, q, rows);
    const options = { balance: 'sinkhorn' } as const;
    const { loss } = await runLocal(inputs, options);
    expectNear(loss, [terms.reduce((sum, term) => sum + term) / (B * V)]);
    const other = await runLocal({ ...inputs, pooledCentre: random('other', [20]) }, options);
    expect(other.loss).toEqual(loss);
  });
});

describe('masked patches', () => {
  const rows = Array.from(tokens.rows.data);
  const flat = (x: NdArray): NdArray => reshape(x, [B * N, D]);
  const student = logits(select(flat(ndInputs.tokens.student), rows), patchHeadOf(ndInputs.heads));
  const all = logits(flat(ndInputs.tokens.teacher), patchHeadOf(ndInputs.teacherHeads));

  test('the weighted sum over them, the centre of all patches', async () => {
    const q = reference.softmax(select(all, rows), TEACHER_TEMPERATURE, nd(patchCentre));
    const terms = crossEntropies(student, q, Array.from(rows.keys()));
    const { loss, meanLogits } = await runMasked(inputs);
    expectNear(loss, [terms.reduce((sum, term, i) => sum + term * tokens.weights.data[i], 0)]);
    expectNear(meanLogits, meanOfRows(all));
  });

  test('through the head of pooled outputs where it is shared', async () => {
    const shared = { ...inputs, patchCentre: random('shared', [20], 0.02) };
    const own = await runMasked({
      ...shared,
      heads: { ...heads, patchHead: heads.pooledHead },
      teacherHeads: { ...teacherHeads, patchHead: teacherHeads.pooledHead },
    });
    const without = await runMasked({
      ...shared,
      heads: { ...heads, patchHead: undefined },
      teacherHeads: { ...teacherHeads, patchHead: undefined },
    });
    expect(without.loss).toEqual(own.loss);
  });
});

describe.each([
  ['local views', 'pooledHead', 'centre'],
  ['local views', 'pooledHead', 'sinkhorn'],
  ['masked patches', 'patchHead', 'centre'],
  ['masked patches', 'patchHead', 'sinkhorn'],
] as const)('gradients of %s', (what, used, balance) => {
  test(`reach the student's ${used} and nothing of the teacher, ${balance}`, async () => {
    const results = await evaluate(inputs, (t) => {
      const { loss } =
        what === 'local views'
          ? localLoss(
              t.local,
              t.heads,
              t.teacherHeads,
              { centre: t.pooledCentre, temperature: t.temperature },
              { balance },
            )
          : maskedLoss(
              t.tokens,
              t.heads,
              t.teacherHeads,
              { centre: t.patchCentre, temperature: t.temperature },
              { balance },
            );
      const { student, teacher } = what === 'local views' ? t.local : t.tokens;
      const { teacherHeads: headsOfTeacher, heads: headsOfStudent } = t;
      return { gradients: gradient(loss, { student, teacher, headsOfStudent, headsOfTeacher }) };
    });
    for (const [name, gradients] of Object.entries(results)) {
      const reached = name === 'gradients.student' || name.includes(`headsOfStudent.${used}`);
      expect([name, gradients.some((x) => x !== 0)]).toEqual([name, reached]);
    }
  });
});

describe('where the student is the teacher', () => {
  const same: Inputs = {
    ...inputs,
    teacherHeads: heads,
    local: {
      student: random('one', [B, D]),
      teacher: random('one', [B, D]),
      images: integers([B], [0, 1, 2]),
    },
    temperature: values([1], [STUDENT_TEMPERATURE]),
    pooledCentre: values([20], new Float32Array(20)),
  };

  test('the loss is the entropy, with a gradient of zero: its minimum', async () => {
    const run = (given: Inputs): ReturnType<typeof evaluate> =>
      evaluate(given, (t) => {
        const targets = { centre: t.pooledCentre, temperature: t.temperature };
        const { loss } = localLoss(t.local, t.heads, t.teacherHeads, targets);
        return { loss, gradients: gradient(loss, { student: t.local.student, heads: t.heads }) };
      });
    const results = await run(same);
    const p = reference.softmax(
      logits(nd(same.local.student), ndInputs.heads.pooledHead),
      STUDENT_TEMPERATURE,
    );
    const entropy = p.data.reduce((sum, x) => sum - x * Math.log(x), 0) / B;
    expectNear(results.loss, [entropy]);
    for (const [name, gradients] of Object.entries(results)) {
      if (!name.startsWith('gradients')) continue;
      expect([name, Math.max(...gradients.map(Math.abs)) < 1e-5]).toEqual([name, true]);
    }
    for (const name of ['x', 'y', 'z']) {
      const step = random(name, [B, D], 0.1);
      const student = values(
        [B, D],
        same.local.student.data.map((x, i) => x + step.data[i]),
      );
      const { loss } = await run({ ...same, local: { ...same.local, student } });
      expect(loss[0]).toBeGreaterThan(results.loss[0]);
    }
  });
});

test('the centre is updated after it was used', async () => {
  const { loss, meanLogits } = await runLocal(inputs);
  const results = await evaluate(inputs, (t) => {
    const centre = ops.scaleBy(t.pooledCentre, 1);
    const { temperature: tau } = t;
    const step = localLoss(t.local, t.heads, t.teacherHeads, { centre, temperature: tau });
    const moved = updateCentre(centre, step.meanLogits);
    const next = scope('next', () =>
      localLoss(t.local, t.heads, t.teacherHeads, { centre: moved, temperature: tau }),
    );
    return { loss: step.loss, moved, next: next.loss };
  });
  expect(results.loss).toEqual(loss);
  const moved = Array.from(pooledCentre.data, (c, k) => 0.9 * c + 0.1 * meanLogits[k]);
  expectNear(results.moved, moved, 1e-7);
  const after = await runLocal({ ...inputs, pooledCentre: values([20], moved) });
  expect(results.next[0]).toBeCloseTo(after.loss[0], 6);
  expect(results.next[0]).not.toBe(loss[0]);
});

describe('constants', () => {
  test('weights and size factors as published', () => {
    expect(distillationWeights).toEqual({ local: 1, masked: 0.25 });
    expect(distillationSizeFactors).toEqual({ B: 0.25, L: 0.5, So400m: 1, g: 0.5 });
  });

  test('the temperature rises linearly and stays', () => {
    const warmup = { from: 0.04, to: 0.07, steps: 4 };
    expectNear(
      [0, 1, 2, 3, 4, 100].map((step) => teacherTemperature(warmup, step)),
      [0.04, 0.05, 0.06, 0.07, 0.07, 0.07],
      1e-12,
    );
    expect(teacherTemperature({ from: 0.04, to: 0.04, steps: 0 }, 0)).toBe(0.04);
    expect(() => teacherTemperature({ ...warmup, from: 0 }, 0)).toThrow('must be positive');
  });
});

test('plans memory for features and prototypes, not for logits', () => {
  const [K, F] = [65536, 32];
  const peak = (n: number): number => {
    const program = compile(
      'prototypes',
      (t) => {
        const loss = ops.prototypeLoss(
          { ...t, studentPrototypes: t.prototypes, teacherPrototypes: stopGradient(t.prototypes) },
          { studentTemperature: STUDENT_TEMPERATURE },
        );
        return { loss, ...gradient(loss, { student: t.student, prototypes: t.prototypes }) };
      },
      {
        student: float32(n, F),
        prototypes: float32(K, F),
        teacher: float32(n / 8, F),
        centre: float32(K),
        weights: float32(n),
        teacherRows: int32(n),
        teacherTemperature: float32(1),
      },
    );
    const { peakBytes } = program.memory;
    program.dispose();
    return peakBytes;
  };
  const [few, many] = [peak(512), peak(2048)];
  expect(many).toBeLessThan((2048 * K * 4) / 10);
  expect(many - few).toBeLessThan(1536 * (F + 8) * 4 * 8);
});

test('one program: masked student, local views, teacher, losses, and their updates', async () => {
  const vision = visionParameters(fixedConfig, randomParameter);
  const own = selfDistillationParameters(24, config, randomParameter);
  const [images, patches] = [2, 9];
  const mask = new Uint8Array(images * patches).map((_, i) => (i % 9 < 5 ? 1 : 0));
  const given = {
    vision,
    own,
    teacher: teacherPart(vision, own),
    globals: random('globals', [images, 3, 13, 13]),
    locals: random('locals', [images * V, 3, 8, 8]),
    mask: bytes([images, patches], mask),
    rows: integers(
      [10],
      Array.from(mask.keys()).filter((row) => mask[row] === 1),
    ),
    weights: values([10], new Float32Array(10).fill(0.1)),
    imagesOfViews: integers(
      [images * V],
      Array.from({ length: images * V }, (_, i) => Math.floor(i / V)),
    ),
    temperature,
    pooledCentre,
    patchCentre,
  };
  const results = await evaluate(given, (t) => {
    const masked = { mask: t.mask, maskToken: t.own.maskToken };
    const targets = { temperature: t.temperature };
    const pooledOf = ({ pooled }: VisionOutput): Tensor => {
      if (pooled === undefined) throw new Error('the tower must be pooled');
      return pooled;
    };
    const teacher = scope('teacher', () =>
      visionTower(t.teacher.vision, fixedConfig, { images: t.globals }),
    );
    const hidden = scope('masked', () =>
      visionTower(t.vision, fixedConfig, { images: t.globals }, { masked }),
    );
    const views = scope('local', () =>
      visionTower(t.vision, fixedConfig, { images: t.locals }, { imageSize: 8 }),
    );
    const local = localLoss(
      { student: pooledOf(views), teacher: pooledOf(teacher), images: t.imagesOfViews },
      t.own,
      t.teacher,
      { ...targets, centre: t.pooledCentre },
    );
    const patchTerm = maskedLoss(
      { student: hidden.tokens, teacher: teacher.tokens, rows: t.rows, weights: t.weights },
      t.own,
      t.teacher,
      { ...targets, centre: t.patchCentre },
    );
    const loss = ops.add(local.loss, ops.scaleBy(patchTerm.loss, distillationWeights.masked));
    return {
      loss,
      gradients: gradient(loss, { vision: t.vision, own: t.own, teacher: t.teacher }),
    };
  });
  expect(results.loss[0]).toBeGreaterThan(0);
  for (const [name, gradients] of Object.entries(results)) {
    if (!name.startsWith('gradients.') || name.endsWith('key.bias')) continue;
    const reached = !name.startsWith('gradients.teacher');
    expect([name, gradients.some((x) => x !== 0)]).toEqual([name, reached]);
  }
});
