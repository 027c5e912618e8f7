// A trained model for images of another size, for another patch, or in the other layout (SigLIP 2,
// arXiv 2502.14786 §2.4). Two parameters change, each by a linear map: the patch kernel by PI-resize
// (FlexiViT, arXiv 2212.08013 §3.4; big_vision models/proj/flexi/vit.py), the grid of positions by
// interpolation. Everything else, the text tower included, stays.
import { SiglipError } from '../errors';
import type { AxisMap } from './axis_map';
import {
  alongAxis,
  cornerAxis,
  cubicAxis,
  linearAxis,
  pseudoInverseOfTranspose,
  squared,
} from './axis_map';
import type { ModelConfig, VisionConfig } from './config';
import { checkConfig, gridSide } from './config';
import { NAFLEX_GRID } from './variants';

/** What the adapted model is; what is left out stays as it was. */
export interface AdaptationTarget {
  /**
   * Side of the images in pixels, of the fixed layout alone. Default: that of the old model; from
   * NaFlex, as many whole patches as its grid has cells.
   */
  readonly imageSize?: number | undefined;
  /** Side of a patch in pixels. */
  readonly patch?: number | undefined;
  readonly layout?: VisionConfig['layout'] | undefined;
  /**
   * Cells of the square grid of positions, of the NaFlex layout alone. Default: those of the old
   * model; from the fixed layout 16 × 16, as published.
   */
  readonly positions?: number | undefined;
}

/**
 * How a grid of positions is resized.
 *
 * - `linear`: half-pixel bilinear, antialiased when it shrinks: what NaFlex does to every image
 *   (big_vision models/proj/flexi/vit.py, naflex_vit.py).
 * - `corner`: bilinear with the corners aligned (big_vision models/vit.py, resample_posemb).
 * - `cubic`: half-pixel bicubic (`interpolate_pos_encoding` of transformers).
 */
export const positionMethods = ['linear', 'corner', 'cubic'] as const;
export type PositionMethod = (typeof positionMethods)[number];

export interface AdaptationOptions {
  /** Default `'linear'`; the paper does not say. */
  readonly positions?: PositionMethod | undefined;
  /**
   * What becomes of the second moment of a resized parameter; the paper does not say.
   *
   * - `reset` (default): zero, to be counted from here in Adam's bias correction. The first moment
   *   goes on with its own count.
   * - `squared`: by the map with its weights squared, as variances of independent gradients go.
   */
  readonly secondMoment?: 'reset' | 'squared' | undefined;
}

/** Adam's moments of one parameter after an adaptation. */
export interface AdaptedMoments {
  readonly m: Float32Array;
  readonly v: Float32Array;
  /** Whether v starts anew, so that the count of its bias correction must. */
  readonly reset: boolean;
}

/** From one model to another, parameter by parameter. */
export interface Adaptation {
  readonly config: ModelConfig;
  /** Whether the parameter of a path is another in the new model. */
  readonly changes: (path: string) => boolean;
  /**
   * Values of the parameter of a path in the new model from those in the old: the same array where
   * nothing changes, which is so for every path that is no parameter of the model too.
   *
   * @throws ERR_SHAPE when the values are not those of the old model
   */
  readonly adapt: (path: string, values: Float32Array) => Float32Array;
  /** As {@link adapt} for Adam's moments. @throws ERR_SHAPE */
  readonly adaptMoments: (path: string, m: Float32Array, v: Float32Array) => AdaptedMoments;
}

/** What becomes of one parameter; `through` is applied to the map of each axis. */
interface ParameterMap {
  readonly elements: number;
  /** Whether values are mixed, not only put in another order. */
  readonly resizes: boolean;
  apply(values: Float32Array, through: (map: AxisMap) => AxisMap): Float32Array;
}

/**
 * The adaptation of a model to a target.
 *
 * @throws ERR_CONFIG when the target is no model, ERR_ARGUMENT when it says what its layout does not have
 * @example
 * // So400m/16 at 256 pixels to So400m/14 at 224: the grid stays, the kernel is resized.
 * const { config, adapt } = adaptModel(old, { patch: 14, imageSize: 224 });
 * const kernel = adapt('vision.patchEmbedding.weight', oldKernel);
 */
export function adaptModel(
  from: ModelConfig,
  target: AdaptationTarget,
  { positions: method = 'linear', secondMoment = 'reset' }: AdaptationOptions = {},
): Adaptation {
  const old = checkConfig(from).vision;
  const config = checkConfig({ ...from, vision: adaptedVision(old, target) });
  const maps = new Map<string, ParameterMap>();
  if (old.patch !== config.vision.patch || old.layout !== config.vision.layout) {
    maps.set('vision.patchEmbedding.weight', patchMap(old, config.vision));
  }
  const [before, after] = [gridSide(old), gridSide(config.vision)];
  if (before !== after) {
    maps.set('vision.positions', {
      elements: before * before * old.width,
      resizes: true,
      apply: (values, through) =>
        resizeGrid(values, old.width, through(axisOf[method](before, after))),
    });
  }
  const adapted = (
    path: string,
    values: Float32Array,
    through: (map: AxisMap) => AxisMap,
  ): Float32Array => {
    const map = maps.get(path);
    if (map === undefined) return values;
    if (values.length === map.elements) return map.apply(values, through);
    throw new SiglipError(
      'ERR_SHAPE',
      `adapt: ${path} must have ${String(map.elements)} elements, got ${String(values.length)}`,
    );
  };
  const linear = (path: string, values: Float32Array): Float32Array =>
    adapted(path, values, (map) => map);
  return {
    config,
    changes: (path) => maps.has(path),
    adapt: linear,
    adaptMoments: (path, m, v) => {
      const reset = secondMoment === 'reset' && maps.get(path)?.resizes === true;
      const second = adapted(path, v, squared);
      return { m: linear(path, m), v: reset ? second.fill(0) : second, reset };
    },
  };
}

function adaptedVision(old: VisionConfig, target: AdaptationTarget): VisionConfig {
  const { layout = old.layout, patch = old.patch, imageSize, positions } = target;
  const { width, depth, mlpWidth, heads, pool } = old;
  const shared = { width, depth, mlpWidth, heads, pool, patch };
  if (layout === 'naflex') {
    refuse('imageSize', layout, imageSize);
    const cells = old.layout === 'naflex' ? old.positions : NAFLEX_GRID ** 2;
    return { ...shared, layout, positions: positions ?? cells };
  }
  refuse('positions', layout, positions);
  const side = imageSize ?? (old.layout === 'fixed' ? old.imageSize : gridSide(old) * patch);
  return { ...shared, layout, imageSize: side, positions: Math.floor(side / patch) ** 2 };
}

function refuse(field: string, layout: string, value: number | undefined): void {
  if (value === undefined) return;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `adaptModel: ${field} must be absent in the ${layout} layout, got ${String(value)}`,
  );
}

const axisOf = {
  linear: (from, to) => linearAxis(from, to, true),
  corner: cornerAxis,
  cubic: cubicAxis,
} as const satisfies Record<PositionMethod, (from: number, to: number) => AxisMap>;

/**
 * Resizes a square grid of positions.
 *
 * @param grid - (n·n, D), row by row
 * @param width - D
 * @param side - m
 * @returns (m·m, D); the grid itself where n is m
 */
export function resizePositions(
  grid: Float32Array,
  width: number,
  side: number,
  method: PositionMethod = 'linear',
): Float32Array {
  const n = Math.sqrt(grid.length / width);
  return n === side ? grid : resizeGrid(grid, width, axisOf[method](n, side));
}

function resizeGrid(grid: Float32Array, width: number, axis: AxisMap): Float32Array {
  const rows = alongAxis(axis, grid, 1, axis.from * width);
  return Float32Array.from(alongAxis(axis, rows, axis.to, width));
}

/**
 * The map of a patch axis. Let R be the bilinear resize (half-pixel centres, ends repeated, not
 * antialiased) from `from` to `to` pixels; the kernel goes through pinv(Rᵀ), so that for every patch
 * x ⟨R x, new⟩ = ⟨x, old⟩ when the patch grows, and as near as can be when it shrinks. R of an image
 * is the product of those of its axes, and so is the pseudo-inverse.
 */
export function patchAxis(from: number, to: number): AxisMap {
  return pseudoInverseOfTranspose(linearAxis(from, to, false));
}

function patchMap(old: VisionConfig, vision: VisionConfig): ParameterMap {
  const { width, patch } = old;
  return {
    elements: width * 3 * patch * patch,
    resizes: patch !== vision.patch,
    apply: (values, through) => {
      const ordered = old.layout === vision.layout ? values : reordered(values, old);
      if (patch === vision.patch) return ordered;
      const axis = through(patchAxis(patch, vision.patch));
      // (D, 3, P, P) in the fixed layout, (D, P, P, 3) in NaFlex.
      const [outer, colours] = vision.layout === 'fixed' ? [3 * width, 1] : [width, 3];
      const rows = alongAxis(axis, ordered, outer, patch * colours);
      return Float32Array.from(alongAxis(axis, rows, outer * axis.to, colours));
    },
  };
}

// Columns (colour, row, column) of the fixed layout to (row, column, colour) of NaFlex, or back.
function reordered(values: Float32Array, { layout, patch }: VisionConfig): Float32Array {
  const pixels = patch * patch;
  const result = new Float32Array(values.length);
  for (let first = 0; first < values.length; first += 3 * pixels) {
    for (let colour = 0; colour < 3; colour++) {
      for (let pixel = 0; pixel < pixels; pixel++) {
        const [fixed, naflex] = [colour * pixels + pixel, pixel * 3 + colour];
        const [to, source] = layout === 'fixed' ? [naflex, fixed] : [fixed, naflex];
        result[first + to] = values[first + source];
      }
    }
  }
  return result;
}
