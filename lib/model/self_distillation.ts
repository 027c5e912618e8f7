// What self-distillation and masked prediction add to a model (SigLIP 2, arXiv 2502.14786 §2.3; SILC,
// arXiv 2310.13355; TIPS, arXiv 2410.16512): a mask token, two projection heads, and a teacher, which is
// a moving average of the student's vision tower and heads.
import { SiglipError } from '../errors';
import type { Tensor } from '../graph';
import { flatten, mapTree } from '../graph';
import type { ProjectionHeadParameters } from '../nn';
import * as ops from '../ops';
import type { Initializer, LeafBuilder } from './branch';
import { Branch, zero } from './branch';
import type { FixedVisionConfig } from './config';
import type { VisionParameters } from './parameters';

export interface SelfDistillationConfig {
  /** Hidden width of the heads; default 2048 (DINO). */
  readonly hidden: number;
  /** Width F of the features; default 256 (DINO). */
  readonly bottleneck: number;
  /** Prototypes of the head of pooled outputs; default 65,536 (DINO, SILC). */
  readonly prototypes: number;
  /** Prototypes of the head of patches; default 32,768 (TIPS). */
  readonly patchPrototypes: number;
  /**
   * Whether patches go through the head of pooled outputs (iBOT). Default false: SigLIP 2 names a
   * separate head, DINOv2 found two heads better at scale.
   */
  readonly sharedHead: boolean;
}

export const selfDistillationDefaults: SelfDistillationConfig = {
  hidden: 2048,
  bottleneck: 256,
  prototypes: 65536,
  patchPrototypes: 32768,
  sharedHead: false,
};

/** The heads of a student or a teacher. */
export interface DistillationHeads<Leaf> {
  /** Of the output of the MAP head, before it is brought to unit length. */
  readonly pooledHead: ProjectionHeadParameters<Leaf>;
  /** Of single patches, after the final norm; absent where they share the other. */
  readonly patchHead: ProjectionHeadParameters<Leaf> | undefined;
}

/** The parameters that self-distillation adds to a model. */
export interface SelfDistillationParameters<Leaf> extends DistillationHeads<Leaf> {
  /** (D), in the place of masked patches; zeros in the beginning (DINOv2). */
  readonly maskToken: Leaf;
}

/** The parameters of a teacher. */
export interface TeacherParameters<Leaf> extends DistillationHeads<Leaf> {
  readonly vision: VisionParameters<Leaf>;
}

/** Momentum of the teacher (SILC). Fixed: annealed to 1 it would lock out what texts teach. */
export const TEACHER_MOMENTUM = 0.966;

const headWeight: Initializer = { kind: 'truncatedNormal', deviation: 0.02 };

// As in DINO, all matrices decay, prototypes too: only their direction counts, and norms that grew would
// slow it down. The mask token does not, like positions.
function headTree<Leaf>(
  branch: Branch<Leaf>,
  width: number,
  { hidden, bottleneck }: SelfDistillationConfig,
  prototypes: number,
): ProjectionHeadParameters<Leaf> {
  return {
    fc1: branch.at('fc1').linear(width, hidden, headWeight),
    fc2: branch.at('fc2').linear(hidden, hidden, headWeight),
    fc3: branch.at('fc3').linear(hidden, bottleneck, headWeight),
    prototypes: branch.leaf('prototypes', [prototypes, bottleneck], headWeight, true),
  };
}

/**
 * Builds the tree of the added parameters, one leaf per parameter, under the path `selfDistillation`.
 *
 * @param width - D of the vision tower
 * @throws ERR_CONFIG for a size that is no positive integer
 */
export function selfDistillationParameters<Leaf>(
  width: number,
  config: SelfDistillationConfig,
  build: LeafBuilder<Leaf>,
): SelfDistillationParameters<Leaf> {
  const { hidden, bottleneck, prototypes, patchPrototypes, sharedHead } = config;
  for (const [field, value] of Object.entries({
    hidden,
    bottleneck,
    prototypes,
    patchPrototypes,
  })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new SiglipError(
      'ERR_CONFIG',
      `selfDistillation: ${field} must be a positive integer, got ${String(value)}`,
    );
  }
  const branch = new Branch('', build).at('selfDistillation');
  return {
    maskToken: branch.leaf('maskToken', [width], zero),
    pooledHead: headTree(branch.at('pooledHead'), width, config, prototypes),
    patchHead: sharedHead
      ? undefined
      : headTree(branch.at('patchHead'), width, config, patchPrototypes),
  };
}

/** The head of patches. */
export function patchHeadOf<Leaf>(heads: DistillationHeads<Leaf>): ProjectionHeadParameters<Leaf> {
  return heads.patchHead ?? heads.pooledHead;
}

/**
 * What of a student the teacher has too: vision tower and heads, but no text tower, no scalars of the
 * logits and no mask token. Copied when the teacher is inserted, averaged afterwards.
 */
export function teacherPart<Leaf>(
  vision: VisionParameters<Leaf>,
  { pooledHead, patchHead }: DistillationHeads<Leaf>,
): TeacherParameters<Leaf> {
  return { vision, pooledHead, patchHead };
}

/**
 * Records momentum · teacher + (1 − momentum) · student for every parameter, in the teacher's memory,
 * which is donated to the program. To be called after the step of the optimizer.
 *
 * @param momentum - default {@link TEACHER_MOMENTUM}; fixed
 * @throws ERR_ARGUMENT where the trees differ, ERR_SHAPE
 */
export function updateTeacher(
  teacher: TeacherParameters<Tensor>,
  student: TeacherParameters<Tensor>,
  momentum = TEACHER_MOMENTUM,
): TeacherParameters<Tensor> {
  const leaves = new Map(flatten(student).map(({ path, leaf }) => [path, leaf as Tensor]));
  return mapTree<TeacherParameters<Tensor>, Tensor, Tensor>(teacher, (average, path) => {
    const x = leaves.get(path);
    if (x === undefined) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `updateTeacher: student must have every parameter of the teacher, got none at ${path}`,
      );
    }
    return ops.movingAverage(average, x, momentum);
  });
}

/**
 * Side in pixels of the local views of a tower: 96 of 256 pixels, in whole patches. SILC has 96 pixels;
 * for other resolutions and patches nothing is published.
 */
export function localViewSize({ imageSize, patch }: FixedVisionConfig): number {
  return Math.round((96 * imageSize) / 256 / patch) * patch;
}
