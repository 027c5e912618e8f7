// Parameters one behind the other, so that a transfer is one, and a part of all is a range.
import { SiglipError } from '../errors';
import type { Spec } from '../graph';
import { elements } from '../graph';

/** A parameter's place. */
export interface FlatLeaf {
  readonly path: string;
  readonly start: number;
  readonly length: number;
}

/** Elements [from, to) of a parameter. */
export interface Piece {
  readonly path: string;
  readonly from: number;
  readonly to: number;
  /** Where the piece begins in the range it belongs to. */
  readonly start: number;
  /** The parameter's own where the piece is all of it, else (to − from). */
  readonly shape: readonly number[];
}

/** The places of parameters in the order in which they are given. */
export class FlatLayout {
  readonly leaves: readonly FlatLeaf[];
  /** Elements in all. */
  readonly length: number;
  private readonly shapes: ReadonlyMap<string, readonly number[]>;

  constructor(specs: ReadonlyMap<string, Spec>) {
    let start = 0;
    this.leaves = [...specs].map(([path, spec]) => {
      const length = elements(spec);
      start += length;
      return { path, start: start - length, length };
    });
    this.length = start;
    this.shapes = new Map([...specs].map(([path, { shape }]) => [path, shape]));
  }

  /** The place of a parameter. */
  leaf(path: string): FlatLeaf {
    const found = this.leaves.find((leaf) => leaf.path === path);
    if (found !== undefined) return found;
    throw new SiglipError('ERR_ARGUMENT', `train: parameters must include ${path}, got none`);
  }

  shape(path: string): readonly number[] {
    return this.shapes.get(path) ?? [];
  }

  /** What the range [begin, end) has of each parameter it meets. */
  pieces(begin: number, end: number): Piece[] {
    return this.leaves.flatMap(({ path, start, length }) => {
      const from = Math.max(begin - start, 0);
      const to = Math.min(end - start, length);
      if (from >= to) return [];
      const shape = to - from === length ? this.shape(path) : [to - from];
      return [{ path, from, to, start: start + from - begin, shape }];
    });
  }
}
