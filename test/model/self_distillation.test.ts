import { DeviceArray } from '../../lib/array';
import { compile, elements, flatten, mapTree } from '../../lib/graph';
import type { FixedVisionConfig, ParameterSpec, SelfDistillationConfig } from '../../lib/model';
import {
  initialValues,
  localViewSize,
  patchHeadOf,
  selfDistillationDefaults,
  selfDistillationParameters,
  teacherPart,
  TEACHER_MOMENTUM,
  updateTeacher,
  visionParameters,
  visionTower,
} from '../../lib/model';
import type { Value } from '../nn/evaluate';
import { evaluate, maxDifference, random, randomParameter } from '../nn/evaluate';
import { fixedConfig } from '../nn/towers';

const small: SelfDistillationConfig = {
  hidden: 10,
  bottleneck: 5,
  prototypes: 12,
  patchPrototypes: 9,
  sharedHead: false,
};

function table(width: number, config: SelfDistillationConfig): ParameterSpec[] {
  const specs: ParameterSpec[] = [];
  selfDistillationParameters(width, config, (spec) => specs.push(spec));
  return specs;
}

describe('parameters', () => {
  test('paths, shapes and decay', () => {
    expect(table(24, small).map(({ path, shape, decay }) => [path, shape, decay])).toEqual([
      ['selfDistillation.maskToken', [24], false],
      ...(
        [
          ['pooledHead', 12],
          ['patchHead', 9],
        ] as const
      ).flatMap(([head, prototypes]) => [
        [`selfDistillation.${head}.fc1.weight`, [10, 24], true],
        [`selfDistillation.${head}.fc1.bias`, [10], false],
        [`selfDistillation.${head}.fc2.weight`, [10, 10], true],
        [`selfDistillation.${head}.fc2.bias`, [10], false],
        [`selfDistillation.${head}.fc3.weight`, [5, 10], true],
        [`selfDistillation.${head}.fc3.bias`, [5], false],
        [`selfDistillation.${head}.prototypes`, [prototypes, 5], true],
      ]),
    ]);
  });

  test('initial values: biases and mask token zero, matrices normal of 0.02 cut at two deviations', () => {
    for (const spec of table(24, small)) {
      const values = initialValues(spec, 1);
      const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      if (spec.decay) expect(largest > 0.01 && largest <= Math.fround(0.04)).toBe(true);
      else expect(largest).toBe(0);
    }
  });

  test('the published sizes', () => {
    const specs = table(768, selfDistillationDefaults);
    const shapeOf = (path: string): readonly number[] | undefined =>
      specs.find((spec) => spec.path === `selfDistillation.${path}`)?.shape;
    expect(shapeOf('pooledHead.prototypes')).toEqual([65536, 256]);
    expect(shapeOf('patchHead.prototypes')).toEqual([32768, 256]);
    expect(shapeOf('pooledHead.fc1.weight')).toEqual([2048, 768]);
    const mlp = 2048 * 768 + 2048 + 2048 * 2048 + 2048 + 256 * 2048 + 256;
    const sum = specs.reduce((total, spec) => total + elements(spec), 0);
    expect(sum).toBe(768 + 2 * mlp + 256 * (65536 + 32768));
  });

  test('one head for both', () => {
    const shared = selfDistillationParameters(
      24,
      { ...small, sharedHead: true },
      ({ path }) => path,
    );
    expect(shared.patchHead).toBeUndefined();
    expect(patchHeadOf(shared)).toBe(shared.pooledHead);
    const separate = selfDistillationParameters(24, small, ({ path }) => path);
    expect(patchHeadOf(separate)).toBe(separate.patchHead);
  });

  test('a size that is none is refused', () => {
    expect(() => table(24, { ...small, prototypes: 0 })).toThrow(
      'selfDistillation: prototypes must be a positive integer, got 0',
    );
  });
});

test.each([
  [256, 16, 96],
  [384, 16, 144],
  [512, 16, 192],
  [224, 14, 84],
  [384, 14, 140],
])('local views at %d pixels, patches of %d: %d pixels', (imageSize, patch, side) => {
  expect(localViewSize({ imageSize, patch } as FixedVisionConfig)).toBe(side);
});

describe('teacher', () => {
  const vision = visionParameters(fixedConfig, randomParameter);
  const added = selfDistillationParameters(24, small, randomParameter);
  const student = teacherPart(vision, added);

  test('has vision tower and heads, but no mask token', () => {
    const paths = flatten(student).map(({ path }) => path);
    expect(paths).toContain('vision.head.probe');
    expect(paths).toContain('patchHead.prototypes');
    expect(paths.some((path) => path.includes('maskToken'))).toBe(false);
    expect(paths.length).toBe(flatten(vision).length + flatten(added).length - 1);
  });

  test('is the student when it is inserted', async () => {
    const images = random('images', [2, 3, 13, 13]);
    const copy = mapTree<typeof student, Value, Value>(student, (value) => ({
      ...value,
      data: value.data.slice(),
    }));
    const run = (vision: typeof student.vision): Promise<Record<string, Float32Array>> =>
      evaluate({ vision, images }, (t) => visionTower(t.vision, fixedConfig, { images: t.images }));
    expect(await run(copy.vision)).toEqual(await run(student.vision));
  });

  test('the published momentum', () => {
    expect(TEACHER_MOMENTUM).toBe(0.966);
  });

  test.each([undefined, 0.9])('follows the student with a fixed momentum, %p', async (momentum) => {
    const before = mapTree<typeof student, Value, Value>(student, ({ shape }) =>
      random(`teacher ${shape.join('x')}`, shape),
    );
    const program = compile(
      'teacher',
      (t) => updateTeacher(t.teacher, t.student, momentum),
      { teacher: before, student },
      { donate: ['teacher'] },
    );
    const m = momentum ?? TEACHER_MOMENTUM;
    const onDevice = mapTree<typeof before, Value, DeviceArray>(before, ({ data, shape }) =>
      DeviceArray.from(data, shape),
    );
    const now = mapTree<typeof before, Value, Value['data']>(student, ({ data }) => data);
    const expected = new Map(
      flatten(before).map(({ path, leaf }) => [path, Float64Array.from((leaf as Value).data)]),
    );
    let teacher = onDevice;
    for (let step = 0; step < 3; step++) {
      teacher = await program.run({ teacher, student: now });
      for (const { path, leaf } of flatten(student)) {
        const values = expected.get(path) ?? new Float64Array(0);
        (leaf as Value).data.forEach((x, i) => (values[i] = m * values[i] + (1 - m) * x));
      }
    }
    for (const { path, leaf } of flatten(teacher)) {
      const array = leaf as DeviceArray;
      const values = expected.get(path) ?? new Float64Array(0);
      expect([path, maxDifference(await array.read(), values) < 1e-6]).toEqual([path, true]);
      array.dispose();
    }
    program.dispose();
  });

  test('parameters that the student lacks are refused', () => {
    const other = teacherPart(vision, { ...added, patchHead: undefined });
    expect(() =>
      compile(
        'teacher',
        (t) => updateTeacher(t.teacher, t.student),
        { teacher: student, student: other },
        { donate: ['teacher'] },
      ),
    ).toThrow('student must have every parameter of the teacher, got none at patchHead');
  });
});
