// What a GPU and its links can do. Peaks and capacities are the makers'; what was measured says so.

import { variant } from '../model';
import { forwardOperations, lossOperations, parametersOf } from './cost';

/** One kind of GPU in servers of eight. */
export interface GpuFigures {
  readonly name: string;
  /** Dense bfloat16 products, operations per second. Data sheet. */
  readonly peak: number;
  /** Bytes of memory. Data sheet. */
  readonly memory: number;
  /** Bytes per second of a stream through memory; measured for the H200, else nine tenths of the data sheet. */
  readonly memoryRate: number;
  /** Bytes per second and direction between GPUs of a server. Data sheet. */
  readonly link: number;
  /** Bytes per second and direction of a GPU's share of the network: 400 or 200 Gb/s. Assumed. */
  readonly network: number;
  /** Share of the peak that the towers reach, forward and backward. */
  readonly towerShare: number;
  /** Share of the peak that the sigmoid loss with gradients reaches. */
  readonly lossShare: number;
  /** What of this was measured, and where the rest comes from. */
  readonly source: string;
}

/** GPUs of a server. */
export const GPUS_PER_SERVER = 8;
/** Share of a link's rate that a large collective reaches. Assumed. */
export const LINK_SHARE = 0.8;
/** Seconds that a step of a collective takes however small it is. Assumed. */
export const LATENCY = 20e-6;
/** Bytes of memory left to the driver, the libraries and what is not counted. Assumed. */
export const RESERVED = 4e9;

/** Bytes that Adam moves for a parameter: it reads four float32 numbers and writes three. */
export const ADAM_BYTES = 28;

const H200_PEAK = 989e12;
const H200_STREAM = 3.96e12;

// bench/results/nvidia_h200.json: a step of B/16-256 at 256 pairs runs at 2,596 pairs/s, the loss of
// 32,768 pairs of width 768 with gradients takes 7.485 ms, Adam streams 3.96 TB/s.
const MEASURED = { pairs: 256, pairsPerSecond: 2596, lossPairs: 32768, lossSeconds: 7.485e-3 };

// Operations of the towers per second in the measured step, Adam's time taken out.
function measuredTowers(): number {
  const model = variant('B/16');
  const { vision, text } = forwardOperations(model);
  const adam = (ADAM_BYTES * parametersOf(model)) / H200_STREAM;
  const seconds = MEASURED.pairs / MEASURED.pairsPerSecond - adam;
  return (3 * (vision + text) * MEASURED.pairs) / seconds;
}

function measuredLoss(): number {
  const { lossPairs, lossSeconds } = MEASURED;
  return lossOperations(lossPairs, lossPairs, variant('B/16').embedding) / lossSeconds;
}

const towerShare = measuredTowers() / H200_PEAK;
const lossShare = measuredLoss() / H200_PEAK;

/** By name. */
export const gpus = {
  h200: {
    name: 'H200',
    peak: H200_PEAK,
    memory: 141e9,
    memoryRate: H200_STREAM,
    link: 450e9,
    network: 50e9,
    towerShare,
    lossShare,
    source:
      'measured: share of the peak in a step of B/16-256 and in the loss, rate of Adam (bench/results/nvidia_h200.json); data sheet: peak, memory, NVLink; assumed: network',
  },
  h100: {
    name: 'H100 SXM',
    peak: 989e12,
    memory: 80e9,
    memoryRate: 0.9 * 3.35e12,
    link: 450e9,
    network: 50e9,
    towerShare,
    lossShare,
    source: 'data sheet: peak, memory, NVLink; assumed: shares of the peak as on the H200, network',
  },
  a100: {
    name: 'A100 80 GB',
    peak: 312e12,
    memory: 80e9,
    memoryRate: 0.9 * 2.04e12,
    link: 300e9,
    network: 25e9,
    towerShare,
    lossShare,
    source: 'data sheet: peak, memory, NVLink; assumed: shares of the peak as on the H200, network',
  },
} as const satisfies Record<string, GpuFigures>;

/** Name of a kind of GPU. */
export type GpuName = keyof typeof gpus;
