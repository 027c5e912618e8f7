// Parameters one behind the other, so that a transfer is one, and a part of all is a range.
import type { Spec } from '../graph';
import { elements, flatten } from '../graph';

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

/** The places of a tree's parameters, in the order of the tree. */
export class FlatLayout {
  readonly leaves: readonly FlatLeaf[];
  /** Elements in all. */
  readonly length: number;
  private readonly shapes: ReadonlyMap<string, readonly number[]>;

  constructor(specs: object) {
    let start = 0;
    const found = flatten(specs).map(({ path, leaf }) => ({ path, spec: leaf as Spec }));
    this.leaves = found.map(({ path, spec }) => {
      const length = elements(spec);
      start += length;
      return { path, start: start - length, length };
    });
    this.length = start;
    this.shapes = new Map(found.map(({ path, spec }) => [path, spec.shape]));
  }

  /** What the range [begin, end) has of each parameter it meets. */
  pieces(begin: number, end: number): Piece[] {
    return this.leaves.flatMap(({ path, start, length }) => {
      const from = Math.max(begin - start, 0);
      const to = Math.min(end - start, length);
      if (from >= to) return [];
      const shape = to - from === length ? this.shapes.get(path) : undefined;
      return [{ path, from, to, start: start + from - begin, shape: shape ?? [to - from] }];
    });
  }
}
