// The losses of DINO, DINOv2 and iBOT as their sources compute them from logits: prototypes that are the
// unit vectors make features of logits.
import type { Tensor } from '../../lib/graph';
import { gradient } from '../../lib/graph';
import { teacherTemperature, updateCentre } from '../../lib/loss';
import { projectionFeatures, unitPrototypes } from '../../lib/nn';
import * as ops from '../../lib/ops';
import type { Value } from '../nn/evaluate';
import { evaluate, integers, values } from '../nn/evaluate';
import type { NdArray } from '../reference/nd_array';
import { ndArray, reshape, rows as rowCount, width } from '../reference/nd_array';
import { softmax } from '../reference/prototype_loss';
import { expectClose, within } from './close';
import { describeGolden } from './golden';

interface Config {
  readonly local_views: number;
  readonly teacher_temp: number;
  readonly teacher_patch_temp: number;
  readonly student_temp: number;
  readonly center_momentum: number;
}

function value({ shape, data }: NdArray): Value {
  return values(shape, data);
}

/** All axes but the last as one. */
function flat(x: NdArray): NdArray {
  return reshape(x, [rowCount(x), width(x)]);
}

function identity(K: number): Value {
  return values(
    [K, K],
    Array.from({ length: K * K }, (_, i) => (i % (K + 1) === 0 ? 1 : 0)),
  );
}

/** Rows of the student's logits that meet rows of the teacher's, and what they count. */
interface Comparison {
  readonly student: NdArray;
  readonly teacher: NdArray;
  readonly centre: NdArray;
  readonly teacherTemperature: number;
  readonly pairs: readonly { student: number; teacher: number; weight: number }[];
}

interface Compared {
  readonly loss: Float32Array;
  readonly student: Float32Array;
}

async function compare(comparison: Comparison, studentTemperature: number): Promise<Compared> {
  const { student, teacher, centre, pairs } = comparison;
  const K = width(student);
  const n = pairs.length;
  const inputs = {
    student: value(student),
    teacher: value(teacher),
    centre: value(reshape(centre, [K])),
    prototypes: identity(K),
    temperature: values([1], [comparison.teacherTemperature]),
    weights: values(
      [n],
      pairs.map(({ weight }) => weight),
    ),
    studentRows: integers(
      [n],
      pairs.map((pair) => pair.student),
    ),
    teacherRows: integers(
      [n],
      pairs.map((pair) => pair.teacher),
    ),
  };
  const results = await evaluate(inputs, (t) => {
    const loss = ops.prototypeLoss(
      {
        student: ops.embedding(t.student, t.studentRows),
        studentPrototypes: t.prototypes,
        teacher: t.teacher,
        teacherPrototypes: t.prototypes,
        centre: t.centre,
        weights: t.weights,
        teacherRows: t.teacherRows,
        teacherTemperature: t.temperature,
      },
      { studentTemperature },
    );
    return { loss, gradients: gradient(loss, { student: t.student }) };
  });
  return { loss: results.loss, student: results['gradients.student'] };
}

/** The centre after an update by the mean of logits (n, K). */
async function movedCentre(centre: NdArray, logits: NdArray, momentum: number): Promise<NdArray> {
  const K = width(logits);
  const inputs = {
    centre: value(reshape(centre, [K])),
    logits: value(reshape(logits, [1, ...logits.shape])),
  };
  const { moved } = await evaluate(inputs, (t) => ({
    moved: updateCentre(
      ops.scaleBy(t.centre, 1),
      ops.reshape(ops.tokenMean(t.logits), [K]),
      momentum,
    ),
  }));
  return ndArray([K], moved);
}

describeGolden('dino_ibot_losses', (golden) => {
  const read = (name: string): NdArray => golden.tensor(name);
  const config = golden.json.config as Config;
  const check = (name: string, actual: ArrayLike<number>): void => {
    expectClose(name, actual, read(name), within(golden.atol(name)));
  };

  /** View v of image b is row v·B + b. */
  const oneGlobal = (centre: NdArray): Comparison => {
    const student = read('in/student_local');
    const [views, batch] = student.shape;
    return {
      student: flat(student),
      teacher: read('in/teacher'),
      centre,
      teacherTemperature: config.teacher_temp,
      pairs: Array.from({ length: views * batch }, (_, i) => ({
        student: i,
        teacher: i % batch,
        weight: 1 / (views * batch),
      })),
    };
  };

  test('one global view against the local views', async () => {
    const { loss, student } = await compare(oneGlobal(read('in/center')), config.student_temp);
    check('out/dino_1x8/loss', loss);
    check('grad/dino_1x8/student_local', student);
  });

  test('each local view alone', async () => {
    const all = oneGlobal(read('in/center'));
    const [views, batch] = read('in/student_local').shape;
    const losses = [];
    for (let v = 0; v < views; v++) {
      const pairs = all.pairs
        .slice(v * batch, (v + 1) * batch)
        .map((pair) => ({ ...pair, weight: 1 / batch }));
      losses.push((await compare({ ...all, pairs }, config.student_temp)).loss[0]);
    }
    check('out/dino_1x8/loss_per_view', losses);
  });

  test('the centre moves after it was used, and the next step uses it', async () => {
    const moved = await movedCentre(read('in/center'), read('in/teacher'), config.center_momentum);
    check('out/dino_1x8/center_after', moved.data);
    // G = weight (p − q) / τ_S gives the target of the next step away.
    const teacher = read('in/teacher_global2'); // of the next step: the first of these views
    const [, batch, K] = teacher.shape;
    const next = {
      ...oneGlobal(moved),
      teacher: ndArray([batch, K], teacher.data.subarray(0, batch * K)),
    };
    const { student } = await compare(next, config.student_temp);
    const p = softmax(next.student, config.student_temp);
    const q = p.data
      .subarray(0, batch * K)
      .map((value, i) => value - (student[i] * config.student_temp) / next.pairs[0].weight);
    const name = 'out/dino_1x8/teacher_probs_step2';
    // float32 gradients times 48 and τ_S: three roundings of 0.2 more than the target has.
    expectClose(name, q, read(name), within(2 * golden.atol(name)));
  });

  test('two global views against all others', async () => {
    const local = read('in/student_local');
    const globals = read('in/student_global');
    const teacher = read('in/teacher_global2');
    const [teachers, batch, K] = teacher.shape;
    const views = globals.shape[0] + local.shape[0];
    const pairs = [];
    for (let t = 0; t < teachers; t++) {
      for (let v = 0; v < views; v++) {
        if (v === t) continue;
        for (let b = 0; b < batch; b++) {
          const weight = 1 / (batch * teachers * (views - 1));
          pairs.push({ student: v * batch + b, teacher: t * batch + b, weight });
        }
      }
    }
    const { loss, student } = await compare(
      {
        student: ndArray([views * batch, K], [...globals.data, ...local.data]),
        teacher: flat(teacher),
        centre: read('in/center'),
        teacherTemperature: config.teacher_temp,
        pairs,
      },
      config.student_temp,
    );
    check('out/dino_2x10/loss', loss);
    check('grad/dino_2x10/student_all', student);
    const moved = await movedCentre(read('in/center'), flat(teacher), config.center_momentum);
    check('out/dino_2x10/center_after', moved.data);
  });

  test('the temperature of the teacher rises', () => {
    const name = 'out/dino_2x10/teacher_temp_schedule_warmup5_of_10';
    const warmup = { from: config.teacher_temp, to: config.teacher_patch_temp, steps: 5 };
    check(
      name,
      Array.from({ length: read(name).data.length }, (_, step) => teacherTemperature(warmup, step)),
    );
  });

  test.each(['mask', 'mask_variable'])('masked patches, %s', async (name) => {
    const mask = read(`in/${name}`);
    const [batch, patches] = mask.shape;
    const pairs = [];
    for (let b = 0; b < batch; b++) {
      const own = mask.data.subarray(b * patches, (b + 1) * patches);
      const count = own.reduce((sum, masked) => sum + masked, 0);
      for (let n = 0; n < patches; n++) {
        if (own[n] === 0) continue;
        const row = b * patches + n;
        pairs.push({ student: row, teacher: row, weight: 1 / (batch * count) });
      }
    }
    const { loss, student } = await compare(
      {
        student: flat(read('in/student_patch')),
        teacher: flat(read('in/teacher_patch')),
        centre: read('in/patch_center'),
        teacherTemperature: config.teacher_patch_temp,
        pairs,
      },
      config.student_temp,
    );
    check(`out/patch/${name}/loss`, loss);
    check(`out/patch/${name}/loss_masked_form`, loss);
    check(`grad/patch/${name}/student_patch`, student);
  });

  const maskedTeacher = (): NdArray => {
    const teacher = flat(read('in/teacher_patch'));
    const K = width(teacher);
    const masked = Array.from(read('in/mask').data.entries()).filter(([, on]) => on === 1);
    return ndArray(
      [masked.length, K],
      masked.flatMap(([row]) => [...teacher.data.subarray(row * K, (row + 1) * K)]),
    );
  };

  test('centres of patches', async () => {
    const centre = read('in/patch_center');
    const momentum = config.center_momentum;
    const all = await movedCentre(centre, flat(read('in/teacher_patch')), momentum);
    check('out/patch/center_after', all.data);
    const masked = await movedCentre(centre, maskedTeacher(), momentum);
    check('out/patch/center_after_masked_only', masked.data);
  });

  const sinkhorn = async (
    logits: NdArray,
    temperature: number,
    iterations: number,
  ): Promise<Float64Array> => {
    const inputs = {
      logits: value(logits),
      prototypes: identity(width(logits)),
      temperature: values([1], [temperature]),
    };
    const { centre } = await evaluate(inputs, (t) => ({
      centre: ops.sinkhornCentre(t.logits, t.prototypes, t.temperature, { iterations }),
    }));
    return softmax(logits, temperature, ndArray([width(logits)], centre)).data;
  };

  test('Sinkhorn-Knopp', async () => {
    const teacher = read('in/teacher');
    const { teacher_temp, teacher_patch_temp } = config;
    // Logits over 0.04 are about 30, of which float32 has 2e-6: as much of every probability.
    const bar = within(4e-6);
    for (const iterations of [1, 3]) {
      const name = `out/sinkhorn/iter${String(iterations)}`;
      expectClose(name, await sinkhorn(teacher, teacher_temp, iterations), read(name), bar);
    }
    const name = 'out/sinkhorn/patch_iter3';
    expectClose(name, await sinkhorn(maskedTeacher(), teacher_patch_temp, 3), read(name), bar);
  });

  test('the projection head with its gradients', async () => {
    const layer = (i: number): { weight: Value; bias: Value } => ({
      weight: value(read(`param/head/mlp/${String(i)}/weight`)),
      bias: value(read(`param/head/mlp/${String(i)}/bias`)),
    });
    for (const gain of read('param/head/last_layer/weight_g').data) expect(gain).toBe(1);
    const inputs = {
      x: value(read('in/head_x')),
      head: {
        fc1: layer(0),
        fc2: layer(1),
        fc3: layer(2),
        prototypes: value(read('param/head/last_layer/weight_v')),
      },
      cotangent: value(read('in/head_cotangent')),
    };
    const results = await evaluate(inputs, ({ x, head, cotangent }) => {
      const features = projectionFeatures(x, head);
      const output: Tensor = ops.matmul(features, unitPrototypes(head), { transposeB: true });
      const scalar = ops.dot(output, cotangent);
      return { features, output, gradients: gradient(scalar, { x, head }) };
    });
    check('out/head/bottleneck_normalized', results.features);
    check('out/head/output', results.output);
    check('grad_wrt/head/x', results['gradients.x']);
    for (const [i, name] of ['fc1', 'fc2', 'fc3'].entries()) {
      for (const part of ['weight', 'bias']) {
        check(`grad/head/mlp/${String(i)}/${part}`, results[`gradients.head.${name}.${part}`]);
      }
    }
    check('grad/head/last_layer/weight_v', results['gradients.head.prototypes']);
  });
});
