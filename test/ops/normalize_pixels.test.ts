import { describeOp } from './describe_op';

describeOp('normalize_pixels');
