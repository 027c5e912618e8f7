// Parameter trees by path: `vision.blocks.0.attention.query.weight`.
import type { NdArray } from './nd_array';

function isLeaf(tree: object): tree is NdArray {
  return 'data' in tree && tree.data instanceof Float64Array;
}

function below(path: string, key: string): string {
  return path === '' ? key : `${path}.${key}`;
}

/** Every leaf of nested objects and lists with its path, in the order of the tree. */
export function leaves(tree: object, path = ''): [string, NdArray][] {
  if (isLeaf(tree)) return [[path, tree]];
  return Object.entries(tree).flatMap(([key, branch]: [string, object]) =>
    leaves(branch, below(path, key)),
  );
}

/** The tree with f of every leaf in its place. */
export function mapTree<T extends object>(tree: T, f: (leaf: NdArray, path: string) => NdArray): T {
  const walk = (branch: object, path: string): object => {
    if (isLeaf(branch)) return f(branch, path);
    const entries = Object.entries(branch).map(
      ([key, child]: [string, object]): [string, object] => [key, walk(child, below(path, key))],
    );
    return Array.isArray(branch) ? entries.map(([, child]) => child) : Object.fromEntries(entries);
  };
  return walk(tree, '') as T;
}
