// The packages the benchmark measures against. They live in a package of their own, bench/peers,
// are installed on demand and are never a dependency of ours, so their types are restated here as
// far as they are used.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

export interface OrtTensor {
  readonly data: ArrayLike<number> | BigInt64Array;
  readonly dims: readonly number[];
}

export type OrtFeeds = Record<string, OrtTensor>;

export interface OrtSession {
  run(feeds: OrtFeeds): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}

export interface OrtSessionOptions {
  readonly executionProviders: readonly string[];
  readonly intraOpNumThreads: number;
  readonly interOpNumThreads: number;
  readonly graphOptimizationLevel: 'disabled' | 'basic' | 'extended' | 'all';
  readonly optimizedModelFilePath?: string;
}

/** onnxruntime-node. */
export interface Ort {
  readonly Tensor: new (
    type: 'float32' | 'int64',
    data: Float32Array | BigInt64Array,
    dims: readonly number[],
  ) => OrtTensor;
  readonly InferenceSession: {
    create(path: string, options: OrtSessionOptions): Promise<OrtSession>;
  };
}

export interface TransformersTensor {
  readonly data: Float32Array;
}

interface TransformersOptions {
  readonly dtype: 'fp32' | 'q8';
  readonly local_files_only: true;
  /** Folder of the ONNX files in the model's folder. */
  readonly subfolder: string;
  readonly use_external_data_format: boolean;
  readonly session_options: Partial<OrtSessionOptions>;
}

export interface TransformersModel {
  (inputs: Record<string, unknown>): Promise<{ readonly pooler_output: TransformersTensor }>;
  dispose(): Promise<unknown>;
}

/** @huggingface/transformers. */
export interface Transformers {
  readonly env: { allowRemoteModels: boolean; allowLocalModels: boolean; localModelPath: string };
  readonly SiglipVisionModel: {
    from_pretrained(folder: string, options: TransformersOptions): Promise<TransformersModel>;
  };
  readonly AutoProcessor: {
    from_pretrained(
      folder: string,
      options: { readonly local_files_only: true },
    ): Promise<(images: readonly unknown[]) => Promise<Record<string, unknown>>>;
  };
  readonly Tensor: new (
    type: 'float32',
    data: Float32Array,
    dims: readonly number[],
  ) => TransformersTensor;
  readonly RawImage: { read(path: string): Promise<unknown> };
}

interface ProtobufType {
  create(properties: Record<string, unknown>): unknown;
  encode(message: unknown): { finish(): Uint8Array };
}

/** protobufjs, which comes with onnxruntime-web. */
export interface Protobuf {
  parse(
    source: string,
    options: { readonly keepCase: boolean },
  ): { readonly root: { lookupType(name: string): ProtobufType } };
}

/** Where the peers are installed. */
export const peersFolder = join(__dirname, 'peers');

/**
 * Installs the peers from their lockfile unless they are there; install scripts are not run, for the
 * one of onnxruntime-node downloads what a CPU does not need.
 *
 * @returns why they cannot be had, or undefined
 */
export function installPeers(): string | undefined {
  const lockfile = readFileSync(join(peersFolder, 'package-lock.json'), 'utf8');
  const installed = join(peersFolder, 'node_modules', '.package-lock.json');
  if (existsSync(installed) && sameVersions(lockfile, readFileSync(installed, 'utf8'))) return;
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
  const { status, stderr, error } = spawnSync('npm', args, { cwd: peersFolder, encoding: 'utf8' });
  if (status === 0) return undefined;
  const reason = (error?.message ?? stderr).trim().split('\n')[0];
  return `npm ${args.join(' ')} in bench/peers failed: ${reason}`;
}

interface Lockfile {
  readonly packages: Record<string, { readonly version?: string; readonly optional?: boolean }>;
}

function sameVersions(wanted: string, installed: string): boolean {
  const { packages } = JSON.parse(wanted) as Lockfile;
  const present = (JSON.parse(installed) as Lockfile).packages;
  return Object.entries(packages).every(
    ([path, { version, optional }]) =>
      path === '' || optional === true || present[path]?.version === version,
  );
}

const requirePeer = createRequire(join(peersFolder, 'package.json'));

/** Loads a peer that {@link installPeers} installed. @throws what its loader throws */
export function loadOrt(): Ort {
  return requirePeer('onnxruntime-node') as Ort;
}

/** As {@link loadOrt}; its models are looked for below `models`, and nowhere else. */
export function loadTransformers(models: string): Transformers {
  const transformers = requirePeer('@huggingface/transformers') as Transformers;
  transformers.env.allowRemoteModels = false;
  transformers.env.allowLocalModels = true;
  transformers.env.localModelPath = `${models}/`;
  return transformers;
}

/** As {@link loadOrt}. */
export function loadProtobuf(): Protobuf {
  return requirePeer('protobufjs') as Protobuf;
}

/** Version of an installed peer. */
export function peerVersion(name: string): string {
  const file = join(peersFolder, 'node_modules', name, 'package.json');
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
