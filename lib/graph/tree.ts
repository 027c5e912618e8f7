// A tree is any nesting of plain objects and arrays whose leaves are tensors, specs or arrays: a
// model's parameters, a batch, a set of outputs. Trees are flattened in the order of their keys;
// `undefined` marks an absent branch (a tower without a head) and is skipped.

/** The tree type `T` with every leaf of type `From` replaced by `To`. */
export type MapTree<T, From, To> = T extends From
  ? To
  : T extends readonly unknown[]
    ? { [K in keyof T]: MapTree<T[K], From, To> }
    : T extends object
      ? { [K in keyof T]: MapTree<T[K], From, To> }
      : T;

/** A leaf with its place in the tree, keys joined by dots: `vision.blocks.0.norm1.weight`. */
export interface PathLeaf {
  readonly path: string;
  readonly leaf: object;
}

// What carries a dtype and a shape is a leaf (Spec, Tensor, DeviceArray); so is a typed array.
function isLeaf(value: object): boolean {
  return ArrayBuffer.isView(value) || ('dtype' in value && 'shape' in value);
}

/** Lists the leaves of a tree with their paths, in key order. */
export function flatten(tree: unknown, prefix = ''): PathLeaf[] {
  const leaves: PathLeaf[] = [];
  const collect = (value: unknown, path: string): void => {
    if (value === undefined || value === null || typeof value !== 'object') return;
    if (isLeaf(value)) {
      leaves.push({ path, leaf: value });
      return;
    }
    for (const key of Object.keys(value)) {
      collect((value as Record<string, unknown>)[key], path === '' ? key : `${path}.${key}`);
    }
  };
  collect(tree, prefix);
  return leaves;
}

/** Rebuilds a tree of the same form, each leaf replaced by `replace(leaf, path)`. */
export function mapTree<T, From extends object, To>(
  tree: T,
  replace: (leaf: From, path: string) => To,
  prefix = '',
): MapTree<T, From, To> {
  const walk = (value: unknown, path: string): unknown => {
    if (value === undefined || value === null || typeof value !== 'object') return value;
    if (isLeaf(value)) return replace(value as From, path);
    const below = (key: string): string => (path === '' ? key : `${path}.${key}`);
    if (Array.isArray(value)) return value.map((child, i) => walk(child, below(String(i))));
    return Object.fromEntries(
      Object.entries(value).map(([key, child]) => [key, walk(child, below(key))]),
    );
  };
  return walk(tree, prefix) as MapTree<T, From, To>;
}
