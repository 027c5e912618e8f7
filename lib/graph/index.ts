export type { CompileOptions, Lowered, ProgramMemory, RunInput, StepTime } from './compile';
export { Program, compile, disposeArrays, lower } from './compile';
export type { ConstantSource } from './constants';
export { Constants } from './constants';
export { checkpoint, gradient, pullback, substitute } from './gradient';
export { add, cast, copy, fill, isOnes, stopGradient } from './intrinsics';
export type {
  Fusions,
  GradientContext,
  GradientRule,
  KernelArguments,
  Narrowing,
  OpDefinition,
} from './op';
export { describe, elements, expectRank, expectSpec, extent, op, Reshaped } from './op';
export type { Part, PartsOptions } from './parts';
export { compileParts, ProgramInParts } from './parts';
export type { ComputeDType } from './precision';
export type { Graph, Rewrite, Specialize } from './rewrite';
export { indexOf } from './rewrite';
export type { Node } from './tensor';
export { operandsOf, recordInto, scope, tap, Tensor, Trace } from './tensor';
export type { MapTree, PathLeaf } from './tree';
export { flatten, mapTree } from './tree';
export type { DType, HostArray, Spec } from '../native/spec';
export { bfloat16, float32, int32, uint8 } from '../native/spec';
