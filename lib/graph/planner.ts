// Storage planning, without a device. Every value of a graph lives either in a buffer that outlives
// the run (inputs, outputs) or at an offset of the program's arena. Values whose lifetimes do not
// overlap share memory; peak memory is thus known before a byte is allocated.
import { SiglipError } from '../errors';
import type { Spec } from '../native/spec';
import { bytesOf, ELEMENT_BYTES } from '../native/spec';
import type { Graph } from './rewrite';
import type { Node } from './tensor';
import type { Tensor } from './tensor';
import { operandsOf } from './tensor';

/** Every offset is a multiple of this: a cache line, and a full AVX-512 vector. */
export const alignment = 64;

/** A place: `storage` is −1 for the arena, else the index of a buffer given to the run. */
export interface Place {
  readonly storage: number;
  readonly offset: number;
}

export interface Plan {
  readonly arenaBytes: number;
  /** Bytes of each buffer: the inputs in their order, then the outputs that need their own. */
  readonly buffers: readonly number[];
  readonly places: ReadonlyMap<Tensor, Place>;
  /** Scratch of each node that asked for some. */
  readonly scratch: ReadonlyMap<Node, Place>;
  /** For every result, the buffer that holds it (an input's when it was updated in place). */
  readonly results: readonly number[];
}

export interface PlanOptions {
  /** Program inputs that operations may overwrite. */
  readonly donated: ReadonlySet<Tensor>;
  /** Bytes of scratch a node needs. */
  scratchBytes(node: Node): number;
}

interface Block {
  readonly bytes: number;
  readonly first: number;
  last: number;
  offset: number;
}

/**
 * Assigns a place to every tensor and every scratch block.
 *
 * @param inputs - the program's inputs, which become buffers 0, 1, ….
 * @throws ERR_ARGUMENT when an operation overwrites memory that is not donated or is read later, or
 * when a result is not computed by the program (the caller copies such results first).
 */
export function plan(graph: Graph, inputs: readonly Tensor[], options: PlanOptions): Plan {
  const roots = rootsOf(graph);
  const rootOf = (x: Tensor): Tensor => roots.get(x) ?? x;
  const offsets = offsetsOf(graph);
  const begin = (x: Tensor): number => offsets.get(x) ?? 0;
  checkInPlace(graph, inputs, options.donated, { rootOf, begin });

  const buffers = inputs.map(bytesOf);
  const bufferOf = new Map<Tensor, number>(inputs.map((x, i) => [x, i]));
  const results = graph.results.map((result) => {
    const root = rootOf(result);
    const existing = bufferOf.get(root);
    if (existing !== undefined) return existing;
    bufferOf.set(root, buffers.length);
    buffers.push(bytesOf(root));
    return buffers.length - 1;
  });

  const skipped = leftOut(graph);
  const blocks = new Map<Tensor | Node, Block>();
  graph.nodes.forEach((node, i) => {
    for (const output of Object.values(node.outputs)) {
      const root = rootOf(output);
      if (root === output && !bufferOf.has(root) && !skipped.has(output)) {
        blocks.set(root, { bytes: bytesOf(root), first: i, last: i, offset: 0 });
      }
    }
    for (const x of [...operandsOf(node), ...Object.values(node.outputs)]) {
      const block = blocks.get(rootOf(x));
      if (block !== undefined) block.last = i;
    }
    const scratch = options.scratchBytes(node);
    if (scratch > 0) blocks.set(node, { bytes: scratch, first: i, last: i, offset: 0 });
  });
  const arenaBytes = placeBlocks([...blocks.values()]);

  const places = new Map<Tensor, Place>();
  const scratch = new Map<Node, Place>();
  const locate = (x: Tensor): void => {
    const root = rootOf(x);
    const buffer = bufferOf.get(root);
    const block = blocks.get(root);
    const within = begin(x);
    if (buffer !== undefined) places.set(x, { storage: buffer, offset: within });
    else if (block !== undefined) places.set(x, { storage: -1, offset: block.offset + within });
  };
  inputs.forEach(locate);
  for (const node of graph.nodes) {
    Object.values(node.outputs).forEach(locate);
    const block = blocks.get(node);
    if (block !== undefined) scratch.set(node, { storage: -1, offset: block.offset });
  }
  return { arenaBytes, buffers, places, scratch, results };
}

/** The results that nobody reads and kernels leave out. */
export function leftOut(graph: Graph): ReadonlySet<Tensor> {
  const read = new Set<Tensor>([...graph.results, ...graph.nodes.flatMap(operandsOf)]);
  return new Set(
    graph.nodes.flatMap(({ definition, outputs }) =>
      (definition?.optionalOutputs ?? []).flatMap((name) => {
        const output = outputs[name];
        return output === undefined || read.has(output) ? [] : [output];
      }),
    ),
  );
}

/** Maps every tensor that shares another's memory (an alias, an update in place) to that tensor. */
export function rootsOf(graph: Graph): ReadonlyMap<Tensor, Tensor> {
  const roots = new Map<Tensor, Tensor>();
  for (const node of graph.nodes) {
    for (const [name, output] of Object.entries(node.outputs)) {
      const source = sharedOperand(node, name);
      if (source !== undefined) roots.set(output, roots.get(source) ?? source);
    }
  }
  return roots;
}

/** Bytes from the beginning of its root's memory to a tensor that is a part of it. */
function offsetsOf(graph: Graph): ReadonlyMap<Tensor, number> {
  const offsets = new Map<Tensor, number>();
  for (const node of graph.nodes) {
    for (const [name, output] of Object.entries(node.outputs)) {
      const source = sharedOperand(node, name);
      if (source === undefined) continue;
      const before = node.definition?.aliasOffset?.(node.inputs, node.attributes) ?? 0;
      const offset = (offsets.get(source) ?? 0) + before * ELEMENT_BYTES[output.dtype];
      if (offset > 0) offsets.set(output, offset);
    }
  }
  return offsets;
}

function sharedOperand(node: Node, output: string): Tensor | undefined {
  if (node.definition?.kernel === 'alias') return operandsOf(node)[0];
  const operand = node.definition?.inPlace?.[output];
  const source = operand === undefined ? undefined : node.inputs[operand];
  return source !== undefined && source !== null && 'shape' in source ? source : undefined;
}

function checkInPlace(
  graph: Graph,
  inputs: readonly Tensor[],
  donated: ReadonlySet<Tensor>,
  {
    rootOf,
    begin,
  }: { readonly rootOf: (x: Tensor) => Tensor; readonly begin: (x: Tensor) => number },
): void {
  // Of every root, the tensors that hold the current contents of overwritten parts of its memory.
  const current = new Map<Tensor, readonly Tensor[]>();
  const overwrites = (x: Tensor, other: Tensor): boolean =>
    begin(x) < begin(other) + bytesOf(other) && begin(other) < begin(x) + bytesOf(x);
  const isInput = new Set(inputs);
  for (const node of graph.nodes) {
    for (const x of operandsOf(node)) checkCurrent(x, node.label);
    for (const name of Object.keys(node.definition?.inPlace ?? {})) {
      const source = sharedOperand(node, name);
      const output = node.outputs[name];
      if (source === undefined || output === undefined) continue;
      const root = rootOf(source);
      if (isInput.has(root) && !donated.has(root)) {
        throw new SiglipError(
          'ERR_ARGUMENT',
          `compile: ${node.label} must overwrite only donated inputs, got one that is not donated`,
        );
      }
      replace(root, source, output);
    }
    if (node.definition?.kernel === 'alias') {
      const [source] = operandsOf(node);
      const output = Object.values(node.outputs)[0];
      if (source === undefined || output === undefined) continue;
      const held = current.get(rootOf(source)) ?? [];
      if (held.includes(source)) replace(rootOf(source), source, output);
    }
  }
  for (const result of graph.results) checkCurrent(result, 'the results');

  function replace(root: Tensor, source: Tensor, output: Tensor): void {
    const others = (current.get(root) ?? []).filter((x) => !overwrites(x, source));
    current.set(root, [...others, output]);
  }

  function checkCurrent(x: Tensor, reader: string): void {
    const held = current.get(rootOf(x)) ?? [];
    if (held.every((latest) => latest === x || !overwrites(latest, x))) return;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `compile: ${reader} must read a value before it is overwritten in place, got ${x.node.label} after its update`,
    );
  }
}

// Greedy by size: the largest block first, each at the lowest offset where no block that lives at
// the same time is in the way. Gives the size of the arena.
function placeBlocks(blocks: readonly Block[]): number {
  const align = (n: number): number => Math.ceil(n / alignment) * alignment;
  const placed: Block[] = []; // sorted by offset
  let arena = 0;
  const order = [...blocks].sort((a, b) => b.bytes - a.bytes || a.first - b.first);
  for (const block of order) {
    let offset = 0;
    for (const other of placed) {
      if (other.last < block.first || block.last < other.first) continue;
      if (offset + block.bytes <= other.offset) break;
      offset = Math.max(offset, align(other.offset + other.bytes));
    }
    block.offset = offset;
    arena = Math.max(arena, align(offset + block.bytes));
    const after = placed.findIndex((other) => other.offset > offset);
    placed.splice(after < 0 ? placed.length : after, 0, block);
  }
  return arena;
}

/** Bytes of one specification or tensor, for reports. */
export function totalBytes(specs: readonly Spec[]): number {
  return specs.reduce((sum, spec) => sum + bytesOf(spec), 0);
}
