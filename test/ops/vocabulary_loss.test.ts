import { describeOp } from './describe_op';

describeOp('vocabulary_loss');
