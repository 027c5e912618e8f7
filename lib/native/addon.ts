// The typed face of the native addon. What it does is said here; how, in native/binding.
import type { SiglipError, SiglipErrorCode } from '../errors';
import type { Device } from './device';
import type { ArgumentSignature } from './kernels';

/** Instruction sets the kernels are compiled for. */
export type InstructionSet = 'generic' | 'avx2' | 'avx512';

/** What the addon says of itself. */
export interface NativeDescription {
  /** The instruction set in use: the widest this machine has, or what `SIGLIP2_ISA` asks for. */
  readonly isa: InstructionSet;
  /**
   * Instructions in use that not every machine with the set has: `vnni` multiplies bytes, `bf16`
   * bfloat16, `amx` does both by whole tiles. `SIGLIP2_ISA=avx512,novnni,nobf16,noamx` switches them off.
   */
  readonly features: readonly ('vnni' | 'bf16' | 'amx')[];
  /** Threads a kernel runs on: the physical cores, or `SIGLIP2_THREADS`. */
  readonly threads: number;
  readonly kernels: readonly {
    readonly name: string;
    readonly arguments: ArgumentSignature[];
    /** Whether it has a form for GPUs. */
    readonly cuda: boolean;
  }[];
  /** What there is of CUDA; looked up when it is read. */
  readonly cuda: NativeCuda;
}

/** What the machine and the build have of CUDA. */
export interface NativeCuda {
  /** Whether the build has CUDA kernels. */
  readonly built: boolean;
  /** The CUDA version of the driver, such as `13.0`. */
  readonly driver?: string;
  /** That of the build. */
  readonly runtime?: string;
  /** Those that can be used. */
  readonly devices: readonly {
    /** N of `cuda:N`. */
    readonly index: number;
    readonly name: string;
    /** 10 · major + minor of the compute capability. */
    readonly architecture: number;
    readonly memoryBytes: number;
    /** Opens a context on the device when it is read. */
    readonly freeBytes: number;
    readonly multiprocessors: number;
    /** The same in every process and under every index. */
    readonly uuid: string;
  }[];
  /** What is missing for there to be more: a line each, and below it a line with what to do. */
  readonly missing: readonly string[];
  /** The library of collectives between GPUs; looked for when it is read. */
  readonly nccl: {
    /** Such as `2.30.7`; undefined where there is none. */
    readonly version?: string;
    /** Then why, and below it what to do. */
    readonly missing?: string;
  };
}

/** An array in the arena (`storage` −1) or in one of a run's buffers; `offset` in bytes. */
export interface NativeView {
  readonly storage: number;
  readonly offset: number;
  readonly dtype: 0 | 1 | 2 | 3;
  readonly shape: readonly number[];
}

/** An argument of a step, in C++ order; scratch is a uint8 view, or null when none is needed. */
export type NativeArgument = NativeView | readonly NativeView[] | number | null;

/** One kernel call of a program. */
export interface NativeStep {
  readonly kernel: number;
  /** Appears in the error of a step that fails. */
  readonly label: string;
  readonly args: readonly NativeArgument[];
}

/** A flat list of kernel calls over one planned arena and the buffers of a run. */
export interface ProgramDescription {
  readonly name: string;
  readonly arenaBytes: number;
  /** Least bytes of each buffer of a run; views are checked against these once, here. */
  readonly bufferBytes: readonly number[];
  readonly steps: readonly NativeStep[];
}

/**
 * Device memory. Writes, reads and runs of a device take effect in the order in which they were
 * called; a buffer disposed while queued work needs it stays alive until that is done.
 */
export interface NativeBuffer {
  readonly bytes: number;
  /** Its full name. */
  readonly device: Exclude<Device, 'cuda'>;
  readonly disposed: boolean;
  /**
   * Copies `data`, several arrays one behind the other, before it returns; it lands behind the work
   * already queued.
   */
  write(offset: number, data: Uint8Array | readonly Uint8Array[]): void;
  /** Fills `into` behind the work already queued. Rejects with ERR_ARGUMENT if it was detached. */
  read(offset: number, into: Uint8Array): Promise<void>;
  /** Idempotent. */
  dispose(): void;
}

/** A checked program. */
export interface NativeProgram {
  /** Gives the buffers from number `first` on to all later runs, which then take the others alone. */
  bind(first: number, buffers: readonly NativeBuffer[]): void;
  /** Queues one run. With `profile`, gives the nanoseconds of each step. */
  run(buffers: readonly NativeBuffer[], profile: boolean): Promise<Float64Array | undefined>;
  /** Gives back its claim on the arena once queued runs are done. Idempotent. */
  dispose(): void;
}

/**
 * Element formats of weight files and what they become: floats float32, signed integers int32
 * (int64 must fit, or ERR_WEIGHTS), uint8 and bool uint8.
 */
export type FileFormat =
  | 'float64'
  | 'float32'
  | 'float16'
  | 'bfloat16'
  | 'int64'
  | 'int32'
  | 'int16'
  | 'int8'
  | 'uint8'
  | 'bool';

/** A file opened for reading pieces of it. Its size is fixed when it is opened. */
export interface NativeMappedFile {
  readonly bytes: number;
  readonly disposed: boolean;
  /** A copy of `length` bytes. */
  slice(offset: number, length: number): Uint8Array;
  /** Converts `elements` elements and writes them as {@link NativeBuffer.write} would. */
  load(
    offset: number,
    format: FileFormat,
    into: NativeBuffer,
    intoOffset: number,
    elements: number,
  ): void;
  /** Idempotent. */
  dispose(): void;
}

/** Pixels as the native side reads them. */
export interface NativePixels {
  /** Rows from the top, channels interleaved, exactly as many bytes as there are samples. */
  readonly data: Uint8Array;
  /**
   * `false`: `data` is copied before the call returns. `true`: it is read until the promise settles,
   * which is only safe with memory that nobody else holds, since a detached one would be gone.
   */
  readonly shared: boolean;
  /** Sides in pixels, at most 2^28 like those of the result. */
  readonly width: number;
  readonly height: number;
  /** 0 grey, 1 grey and alpha, 2 RGB, 3 RGBA, 4 CMYK with 255 for full ink. */
  readonly format: number;
  /** 0xRRGGBB behind transparent parts; null drops alpha. */
  readonly background: number | null;
}

/** One picture of {@link Addon.prepareImages}. */
export interface NativePicture extends NativePixels {
  readonly toWidth: number;
  readonly toHeight: number;
  /** Where the result begins in `into`, in bytes. */
  readonly offset: number;
}

/** One view of {@link Addon.renderViews}. */
export interface NativeImageView {
  /** Index of the image. */
  readonly image: number;
  /** The crop, in pixels of the image. */
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
  readonly flip: boolean;
  /** 0 brightness, 1 contrast, 2 saturation, 3 hue, in the order in which they are changed. */
  readonly order: readonly number[];
  readonly brightness: number;
  readonly contrast: number;
  readonly saturation: number;
  /** Share of a full turn, in [−½, ½]. */
  readonly hue: number;
  readonly grey: boolean;
  /** Standard deviation of the blur in pixels of the view; 0 for none. */
  readonly sigma: number;
}

/** What {@link Addon.prepareImages} makes of every picture. */
export interface NativeRecipe {
  /** Pillow's number: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming. */
  readonly filter: number;
  /** 0 Pillow, 1 torchvision, which has bilinear and bicubic alone. */
  readonly rounding: number;
  /** 0 bytes (h, w, 3); 1 float planes (3, h, w); 2 float patches (rows · columns, P · P · 3). */
  readonly layout: number;
  /** Side of a patch; read with layout 2. */
  readonly patch: number;
  /** (3, 256), the float of each byte of each colour; read with layouts 1 and 2. */
  readonly table: Float32Array | null;
}

/** Memory of a device from `offset` bytes on. */
export interface NativePlace {
  readonly buffer: NativeBuffer;
  readonly offset: number;
}

/**
 * A call of NCCL. `allReduce`, `reduceScatter` and `reduce` are sums of float32 and count floats, the
 * others bytes; `reduceScatter` and `allGather` count those of one rank.
 */
export interface NativeTransfer {
  readonly kind:
    'allReduce' | 'reduceScatter' | 'allGather' | 'reduce' | 'broadcast' | 'send' | 'receive';
  /** Null for `receive` alone. */
  readonly from: NativePlace | null;
  /** Null for `send` alone. */
  readonly into: NativePlace | null;
  readonly count: number;
  /** The root of `reduce` and `broadcast`, the other side of `send` and `receive`, else 0. */
  readonly peer: number;
}

/**
 * A rank among those that NCCL connects. Its work follows what was queued on the device before and runs
 * beside what comes after: buffers must be left alone until the promise settles. Promises reject with
 * ERR_COMM when another rank has failed, and from then on always.
 */
export interface NativeNccl {
  /** Joins ranks that have the same `id`; settles when all have come. */
  open(id: Uint8Array, rank: number, size: number): Promise<void>;
  /** One group of calls, the same on every rank; `name` is for messages. */
  run(name: string, transfers: readonly NativeTransfer[]): Promise<void>;
  /** Leaves; settles when all have come. */
  close(): Promise<void>;
  /** Cuts short what is under way, which then rejects with the reason. */
  abort(reason: string): void;
}

/** Memory alive on devices of a kind. */
export interface NativeMemoryOfKind {
  readonly buffers: number;
  readonly bufferBytes: number;
  readonly arenaBytes: number;
}

/** Native memory alive in the process: of the CPU, and of all GPUs. */
export interface NativeMemory extends NativeMemoryOfKind {
  readonly cuda: NativeMemoryOfKind;
}

/** The class native code throws. */
export type ErrorClass = new (code: SiglipErrorCode, message: string) => SiglipError;

/** The exports of the addon. */
export interface Addon {
  /** Hands over the class of all errors. May be repeated; the last one wins. */
  initialize(errorClass: ErrorClass): void;
  describe(): NativeDescription;
  /** Opens a device if it is not yet, and gives its full name. ERR_DEVICE when it is not there. */
  openDevice(device: Device): Exclude<Device, 'cuda'>;
  /** Bytes of scratch one call needs; the arguments as in a step, their storage ignored. */
  scratchBytes(kernel: number, args: readonly NativeArgument[], device?: Device): number;
  /**
   * Zero-filled, or `unfilled` for who writes all of it before it is read, and aligned to 64 bytes, on a
   * GPU to 256. ERR_OUT_OF_MEMORY when the system refuses.
   */
  readonly Buffer: new (bytes: number, device?: Device, unfilled?: boolean) => NativeBuffer;
  /** ERR_DEVICE for a kernel the device has no form of. Its runs take buffers of that device. */
  readonly Program: new (description: ProgramDescription, device?: Device) => NativeProgram;
  readonly MappedFile: new (path: string) => NativeMappedFile;
  /**
   * What ranks that are to be connected share: 128 bytes, which one of them makes. Needs no GPU.
   * ERR_COMM where NCCL is not there.
   */
  ncclId(): Uint8Array;
  /** For a GPU; what takes longer than the limit fails. ERR_COMM where NCCL is not there. */
  readonly Nccl: new (device: Device, limitSeconds: number) => NativeNccl;
  /**
   * Resizes pictures and writes them into `into` behind the work already queued. `into` must be
   * memory that nobody else holds until the promise settles. In that of a GPU, which makes bytes alone,
   * they are resized there.
   */
  prepareImages(
    images: readonly NativePicture[],
    recipe: NativeRecipe,
    into: Uint8Array | NativeBuffer,
  ): Promise<void>;
  /**
   * Renders views of images, each (size, size, 3) bytes, one after the other into `into`, behind the
   * work already queued. `into` as in {@link Addon.prepareImages}, `filter` as in its recipe.
   */
  renderViews(
    images: readonly NativePixels[],
    views: readonly NativeImageView[],
    recipe: { readonly filter: number; readonly size: number },
    into: Uint8Array,
  ): Promise<void>;
  /** Index of the first value that is infinite or not a number, −1 when there is none. */
  firstNotFinite(values: Float32Array): number;
  /** Work for the device is about to be queued: its thread may wake up meanwhile. */
  expectJob(device: Device): void;
  memory(): NativeMemory;
  /**
   * Peak of multiply-adds on registers alone, measured for that long on all threads, FLOP/s: fused
   * float32 ones (the default), or what the int8 and bfloat16 products consist of on this machine.
   * Blocks.
   */
  peak(seconds: number, precision?: 'float32' | 'int8' | 'bfloat16'): number;
}
