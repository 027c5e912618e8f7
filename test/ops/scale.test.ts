import { describeOp } from './describe_op';

describeOp('scale');
